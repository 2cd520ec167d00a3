// LaTeX between \( \), \[ \], $ $ and $$ $$: recognised here, drawn as MathML when the renderer has been loaded.

import type { MarkdownIt, StateBlock } from 'markdown-it'

const ENVIRONMENT = /^\\begin\{(equation|align|gather|alignat|multline)(\*?)\}/

function tag(text: string, display: boolean, escape: (text: string) => string): string {
  const name = display ? 'math-block' : 'math-inline'
  return `<span class="${name}" data-tex="${escape(text)}" data-display="${display ? 1 : 0}">${escape(text)}</span>`
}

export function math(md: MarkdownIt): void {
  md.inline.ruler.before('escape', 'math', (state, silent) => {
    const { src, pos } = state
    const found = delimited(src.slice(pos), src[pos - 1])
    if (!found) return false
    if (!silent) {
      const token = state.push(found.display ? 'math_display' : 'math_inline', '', 0)
      token.content = found.text
    }
    state.pos += found.length
    return true
  })
  md.block.ruler.before('fence', 'math', block, { alt: ['paragraph', 'blockquote', 'list'] })
  const escape = md.utils.escapeHtml
  md.renderer.rules.math_inline = (tokens, at) => tag(tokens[at]!.content, false, escape)
  md.renderer.rules.math_display = (tokens, at) => tag(tokens[at]!.content, true, escape)
  md.renderer.rules.math_block = (tokens, at) => `<p>${tag(tokens[at]!.content, true, escape)}</p>\n`
}

interface Found {
  text: string
  length: number
  display: boolean
}

/** Math at the start of `text`. A dollar opens only before a non-space and closes only after one and before no digit. */
function delimited(text: string, before: string | undefined): Found | null {
  const pairs: [RegExp, boolean][] = [
    [/^\\\(([\s\S]+?)\\\)/, false],
    [/^\\\[([\s\S]+?)\\\]/, true],
    [/^\$\$([^$]+?)\$\$/, true],
    [/^\$(?![\s$])((?:\\.|[^$\\\n])*?[^\s\\$])\$(?!\d)/, false],
  ]
  if (text[0] === '$' && before !== undefined && /[\w$\\]/.test(before)) return null
  for (const [pattern, display] of pairs) {
    const match = pattern.exec(text)
    if (match) return { text: match[1]!.trim(), length: match[0].length, display }
  }
  return null
}

function block(state: StateBlock, start: number, end: number, silent: boolean): boolean {
  const line = (at: number): string => state.src.slice(state.bMarks[at]! + state.tShift[at]!, state.eMarks[at]!)
  const first = line(start)
  const environment = ENVIRONMENT.exec(first)
  const open = environment ? '' : first.startsWith('$$') ? '$$' : first.startsWith('\\[') ? '\\[' : null
  if (open === null || state.sCount[start]! - state.blkIndent >= 4) return false
  const close = environment ? `\\end{${environment[1]}${environment[2]}}` : open === '$$' ? '$$' : '\\]'
  let text = first.slice(open.length)
  let at = start
  while (!text.trimEnd().endsWith(close) || (at === start && text.trim() === close && open === '')) {
    if (++at >= end || text.length > 20_000) return false
    text += '\n' + line(at)
  }
  if (silent) return true
  const token = state.push('math_block', '', 0)
  const whole = text.trimEnd()
  token.content = (environment ? whole : whole.slice(0, whole.length - close.length)).trim()
  token.map = [start, at + 1]
  token.block = true
  state.line = at + 1
  return true
}

let renderer: typeof import('temml').default | null = null
let loading: Promise<void> | null = null

/**
 * Draw the math inside `root`. Unfinished or wrong LaTeX stays readable as it was written. A promise: the renderer had to
 * be asked for, and comes when it resolves.
 */
export function drawMath(root: ParentNode): Promise<void> | null {
  const spans = root.querySelectorAll<HTMLElement>('[data-tex]')
  if (spans.length && !renderer) return (loading ??= import('temml').then((module) => void (renderer = module.default)).finally(() => (loading = null)))
  for (const span of spans) draw(span, renderer!)
  return null
}

function draw(span: HTMLElement, temml: NonNullable<typeof renderer>): void {
  const tex = span.dataset.tex!
  delete span.dataset.tex
  try {
    temml.render(tex, span, { displayMode: span.dataset.display === '1', throwOnError: true, maxExpand: 200, trust: false })
  } catch {
    span.textContent = tex
    span.classList.add('mono')
  }
}
