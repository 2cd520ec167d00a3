// Short messages at the foot of the page, some with one thing to do about them.

import { ApiError } from './api'
import { refusal, t } from './i18n.svelte'

export interface Toast {
  id: number
  text: string
  bad: boolean
  label?: string
  action?: () => void
}

export const toasts: Toast[] = $state([])
let next = 1

export function toast(text: string, options: { bad?: boolean; label?: string; action?: () => void; seconds?: number } = {}): number {
  const id = next++
  toasts.push({ id, text, bad: options.bad ?? false, label: options.label, action: options.action })
  setTimeout(() => dismiss(id), 1000 * (options.seconds ?? (options.bad ? 8 : 4)))
  return id
}

export function dismiss(id: number): void {
  const at = toasts.findIndex((each) => each.id === id)
  if (at >= 0) toasts.splice(at, 1)
}

export function explain(error: unknown): string {
  if (!(error instanceof ApiError)) return t('error.fault')
  if (error.kind === 'offline') return t('error.offline')
  if (error.kind === 'busy' && error.code === 'rate_limit_exceeded') return t('error.busy', { seconds: error.retryAfter ?? 1 })
  if (error.kind === 'engine') return t('error.engine')
  if (error.kind === 'fault') return t('error.fault')
  return refusal(error)
}

export function complain(error: unknown): void {
  if (error instanceof ApiError && error.signedOut) return
  toast(explain(error), { bad: true })
}

export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    const area = document.createElement('textarea')
    area.value = text
    area.className = 'offscreen'
    document.body.append(area)
    area.select()
    const done = document.execCommand('copy')
    area.remove()
    return done
  }
}
