// Markdown as a model writes it, to safe nodes. HTML in the text stays text; what comes out is sanitised all the same;
// pictures from elsewhere become links, so that reading an answer asks nothing of another host.

import DOMPurify from 'dompurify'
import MarkdownIt from 'markdown-it'
import { t } from './i18n.svelte'
import { math } from './math'

const md = new MarkdownIt({ html: false, linkify: true, typographer: false, breaks: false })
md.use(math)
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false })

md.renderer.rules.image = (tokens, at) => {
  const token = tokens[at]!
  const source = String(token.attrGet('src') ?? '')
  return `<a href="${md.utils.escapeHtml(source)}">${md.utils.escapeHtml(token.content || source)}</a>`
}
md.renderer.rules.table_open = () => '<div class="table-scroll" tabindex="0"><table>'
md.renderer.rules.table_close = () => '</table></div>'
for (const cell of ['th_open', 'td_open']) {
  md.renderer.rules[cell] = (tokens, at) => {
    const token = tokens[at]!
    const side = /text-align:(\w+)/.exec(String(token.attrGet('style') ?? ''))?.[1]
    return side === 'right' || side === 'center' ? `<${token.tag} class="align-${side}">` : `<${token.tag}>`
  }
}

function code(text: string, info: string): string {
  const language = /^[\w+#.-]*/.exec(info.trim())?.[0] ?? ''
  const escape = md.utils.escapeHtml
  return (
    `<div class="code"><div class="code-head"><span>${escape(language || t('code.plain'))}</span>` +
    `<button type="button" class="code-copy">${escape(t('copy'))}</button></div>` +
    `<pre tabindex="0"><code data-language="${escape(language)}">${escape(text)}</code></pre></div>`
  )
}
md.renderer.rules.fence = (tokens, at) => code(tokens[at]!.content, tokens[at]!.info)
md.renderer.rules.code_block = (tokens, at) => code(tokens[at]!.content, '')

DOMPurify.addHook('afterSanitizeAttributes', (node) => {
  if (node.tagName !== 'A') return
  node.setAttribute('target', '_blank')
  node.setAttribute('rel', 'noopener noreferrer nofollow')
})

const ALLOWED = {
  ALLOWED_TAGS: (
    'a b blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr i li ol p pre s span strong sub sup table tbody td th thead tr ul'
  ).split(' '),
  ALLOWED_ATTR: ['href', 'class', 'start', 'title', 'tabindex', 'type', 'data-language', 'data-tex', 'data-display'],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true as const,
}

export function render(text: string): DocumentFragment {
  return DOMPurify.sanitize(md.render(text), ALLOWED)
}

/** `text` cut at its top-level blocks: concatenated they are the text. */
export function blocks(text: string): string[] {
  const starts: number[] = []
  for (const token of md.parse(text, {})) {
    if (token.level === 0 && token.nesting >= 0 && token.map) starts.push(token.map[0])
  }
  if (starts.length < 2 || DEFINITION.test(text)) return [text] // definitions reach across blocks
  const lines = text.split(/(?<=\n)/)
  return starts.map((start, at) => lines.slice(at === 0 ? 0 : start, starts[at + 1]).join(''))
}
const DEFINITION = /^ {0,3}\[[^\]]+\]:/m

/**
 * `blocks` of a text that grows, given those it had: only its end is read anew. What comes next can still change the last
 * block and draw it into the one before, as a list's next number does; so much is read again. Rarer things, such as a
 * formula over several paragraphs, are put right when the text is complete.
 */
export function grow(before: string[], text: string): string[] {
  const kept = before.slice(0, -2)
  const length = kept.reduce((sum, block) => sum + block.length, 0)
  if (!kept.length || DEFINITION.test(text.slice(length)) || !text.startsWith(kept.join(''))) return blocks(text)
  return [...kept, ...blocks(text.slice(length))]
}

/**
 * `text` without a last line that says nothing yet but might turn what is above into something else: `-` under a paragraph
 * is a heading until an item follows it.
 */
export function settled(text: string): string {
  const start = text.lastIndexOf('\n') + 1
  return /^[ \t>]*([-=*_+#~|$:\\ ]+|`{1,2}|`{3,}[\w+#.-]*|\d{1,9}[.)]?)$/.test(text.slice(start)) ? text.slice(0, start) : text
}

/** Plain words of an answer, for a screen reader and for a title. */
export function plain(text: string): string {
  return text.replace(/```[\s\S]*?(```|$)/g, ' ').replace(/[#*_`>|]/g, '').replace(/\s+/g, ' ').trim()
}
