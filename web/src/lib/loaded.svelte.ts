// Something fetched for a page: what came, or why nothing did.

import { explain } from './toasts.svelte'

export class Loaded<T> {
  data: T | null = $state(null)
  failure = $state('')

  constructor(private readonly fetch: () => Promise<T>) {
    void this.load()
  }

  load = async (): Promise<void> => {
    try {
      this.data = await this.fetch()
      this.failure = ''
    } catch (error) {
      this.failure = explain(error)
    }
  }
}
