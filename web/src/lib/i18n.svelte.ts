// Words of the interface. English is the reference; TypeScript checks that every other language has the same keys.

import { en } from '../locales/en'
import { actions } from '../locales/actions.zh'
import { errors } from '../locales/errors.zh'
import { zh } from '../locales/zh'
import { settings } from './settings.svelte'

export type Words = Record<keyof typeof en, string>
export type Key = keyof typeof en

const languages: Record<string, Words> = { en, 'zh-CN': zh }
const deeds: Record<string, Record<string, string>> = { 'zh-CN': actions }
const refusals: Record<string, Record<string, string>> = { 'zh-CN': errors }

/** The words of `key`, with `{name}` replaced by `values.name`. */
export function t(key: Key, values?: Record<string, string | number>): string {
  const text = (languages[settings.language] ?? en)[key]
  return values ? text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole)) : text
}

/** What the server refused, in the page's language where its code is known, else as the server says it. */
export function refusal({ message, code }: { message: string; code: string }): string {
  return refusals[settings.language]?.[code] ?? message.charAt(0).toUpperCase() + message.slice(1)
}

/** What the audit log says was done, in the page's language where it is known. */
export function deed(action: string): string {
  return deeds[settings.language]?.[action] ?? action
}
