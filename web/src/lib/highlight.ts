// Colours for code, loaded with the first code block that is shown.

import type { HLJSApi } from 'highlight.js'

const MOST = 30_000 // characters: longer ones stay plain, so that no answer blocks the page

let hljs: HLJSApi | null = null
let loading: Promise<void> | null = null

/** Colour the code inside `root`. A promise: the colours had to be asked for, and come when it resolves. */
export function highlight(root: ParentNode): Promise<void> | null {
  const found = root.querySelectorAll<HTMLElement>('code[data-language]')
  if (found.length && !hljs) return (loading ??= import('./languages').then((module) => void (hljs = module.hljs)).finally(() => (loading = null)))
  for (const element of found) colour(element, hljs!)
  return null
}

function colour(element: HTMLElement, hljs: HLJSApi): void {
  const language = element.dataset.language!.toLowerCase()
  element.removeAttribute('data-language')
  const text = element.textContent ?? ''
  if (!hljs.getLanguage(language) || text.length > MOST) return
  // hljs escapes what it is given; only its own spans are markup
  element.innerHTML = hljs.highlight(text, { language, ignoreIllegals: true }).value
}
