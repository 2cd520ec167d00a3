// Something that a form does: at work, refused with words that stay on the page, or done.

import { explain } from './toasts.svelte'

export class Attempt {
  busy = $state(false)
  failure = $state('')

  /** Whether `action` came to its end. While one is at work another does not begin. */
  async run(action: () => Promise<unknown>): Promise<boolean> {
    if (this.busy) return false
    this.busy = true
    this.failure = ''
    try {
      await action()
      return true
    } catch (error) {
      this.failure = explain(error)
      return false
    } finally {
      this.busy = false
    }
  }
}
