// Colours for code, loaded with the first code block that is shown.

import type { HLJSApi } from 'highlight.js'

const MOST = 30_000 // characters: longer ones stay plain, so that no answer blocks the page

let loading: Promise<HLJSApi> | null = null

export async function highlight(root: ParentNode): Promise<void> {
  const found = root.querySelectorAll<HTMLElement>('code[data-language]')
  if (!found.length) return
  loading ??= import('./languages').then((module) => module.hljs)
  const hljs = await loading
  for (const element of found) {
    const language = element.dataset.language!.toLowerCase()
    element.removeAttribute('data-language')
    const text = element.textContent ?? ''
    if (!hljs.getLanguage(language) || text.length > MOST) continue
    // hljs escapes what it is given; only its own spans are markup
    element.innerHTML = hljs.highlight(text, { language, ignoreIllegals: true }).value
  }
}
