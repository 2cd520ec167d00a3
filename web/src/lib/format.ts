// Amounts arrive as exact decimal strings and stay strings; numbers are made of them only to be drawn.

import { settings } from './settings.svelte'

const SIGNS: Record<string, string> = { USD: '$', CNY: '¥' }

/** An exact amount with its sign, cut (not rounded up) to `digits` decimals, of which two are always shown. */
export function money(amount: string, currency: string, digits = 9): string {
  const minus = amount.startsWith('-') ? '−' : ''
  const [whole = '0', decimals = ''] = amount.replace('-', '').split('.')
  const cut = decimals.slice(0, digits).replace(/0+$/, '').padEnd(2, '0')
  const grouped = whole.replace(/\B(?=(\d{3})+$)/g, ',')
  return `${minus}${SIGNS[currency] ?? `${currency} `}${grouped}.${cut}`
}

/** Money in a small place: two digits that say something, and that it is little when it is. */
export function roughMoney(amount: string, currency: string): string {
  const value = Number(amount)
  const sign = SIGNS[currency] ?? `${currency} `
  if (value === 0) return `${sign}0`
  if (Math.abs(value) < 0.000001) return `<${sign}0.000001`
  if (Math.abs(value) < 0.01) return `${sign}${value.toPrecision(2).replace(/0+$/, '')}`.replace(/e.*/, '')
  return `${sign}${value.toFixed(2)}`
}

export function count(value: number): string {
  return new Intl.NumberFormat(settings.language).format(value)
}

export function short(value: number): string {
  return new Intl.NumberFormat(settings.language, { notation: 'compact', maximumFractionDigits: 1 }).format(value)
}

export function when(seconds: number): string {
  return new Intl.DateTimeFormat(settings.language, { dateStyle: 'medium', timeStyle: 'short' }).format(seconds * 1000)
}

export function day(seconds: number): string {
  return new Intl.DateTimeFormat(settings.language, { dateStyle: 'medium' }).format(seconds * 1000)
}

export function bytes(size: number): string {
  return size < 1024 ? `${size} B` : size < 1 << 20 ? `${(size / 1024).toFixed(1)} KB` : `${(size / (1 << 20)).toFixed(1)} MB`
}

/** About as many tokens as `text` has; the server counts exactly. */
export function guessTokens(text: string): number {
  const wide = text.match(/[\u2e80-\u9fff\uac00-\ud7af\uff00-\uffef]/g)?.length ?? 0
  return Math.ceil(wide * 0.6 + (text.length - wide) * 0.3)
}
