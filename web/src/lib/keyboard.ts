// Shortcuts, in one table that the help sheet shows too.

import type { Key } from './i18n.svelte'

export const MAC = /Mac|iPhone|iPad/.test(navigator.platform)
export const MOD = MAC ? '⌘' : 'Ctrl'

export const SHORTCUTS: { keys: string[]; what: Key }[] = [
  { keys: [MOD, 'K'], what: 'keys.search' },
  { keys: [MOD, 'Shift', 'O'], what: 'keys.new' },
  { keys: [MOD, 'B'], what: 'keys.sidebar' },
  { keys: ['Esc'], what: 'keys.stop' },
  { keys: ['↑'], what: 'keys.edit' },
  { keys: ['Enter'], what: 'keys.send' },
  { keys: ['Shift', 'Enter'], what: 'keys.line' },
  { keys: [MOD, 'Shift', 'C'], what: 'keys.copy' },
  { keys: [MOD, '/'], what: 'keys.help' },
]

/** `k`, `Mod+k`, `Mod+Shift+o` of an event. */
export function chord(event: KeyboardEvent): string {
  const mod = MAC ? event.metaKey : event.ctrlKey
  return `${mod ? 'Mod+' : ''}${event.shiftKey && event.key.length === 1 ? 'Shift+' : ''}${event.key.length === 1 ? event.key.toLowerCase() : event.key}`
}

export const touch = (): boolean => matchMedia('(pointer: coarse)').matches
