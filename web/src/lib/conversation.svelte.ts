// One chat as a tree of messages, and the stream of its running answer.
//
// A stored chat's answer is a job of the server: leaving the page only stops watching, and a lost connection is taken up
// again where it broke. A temporary chat lives in this object alone, and its answer ends with its connection.

import { ApiError, events, get, patch, post, remove, request } from './api'
import { chats } from './chats.svelte'
import { pause } from './online.svelte'
import { session } from './session.svelte'
import type { Attachment, Chat, Message, Mode, StreamEvent } from './types'

export interface Draft {
  content: string
  attachments: Attachment[]
}

interface Sampling {
  mode: Mode
  system: string
  temperature: number | null
  max_tokens: number | null
}

const RETRIES = [500, 1000, 2000, 4000, 8000]

export class Conversation {
  chat: Chat | null = $state(null)
  messages: Message[] = $state([])
  current: number | null = $state(null)
  options: Sampling = $state({ mode: 'chat', system: '', temperature: null, max_tokens: null })
  loading = $state(false)
  missing = $state(false)
  pending: Draft | null = $state(null)
  running: number | null = $state(null)
  starting = $state(false)
  stopping = $state(false)
  lost = $state(false)
  rate = $state(0)
  error: { problem: ApiError; retry: () => void } | null = $state(null)
  /** Said to a screen reader: that an answer began and how it ended, never its pieces. */
  finished: Message | null = $state(null)

  private watching: AbortController | null = null
  private closed = false
  private opened: string | null = null
  private empty: string | null = null

  constructor(readonly temporary = false) {}

  get busy(): boolean {
    return this.running !== null || this.pending !== null || this.starting
  }

  get path(): Message[] {
    const byId = new Map(this.messages.map((message) => [message.id, message]))
    const path: Message[] = []
    for (let at = this.current; at !== null; ) {
      const message = byId.get(at)
      if (!message) break
      path.unshift(message)
      at = message.parent
    }
    return path
  }

  siblings(message: Message): Message[] {
    return this.messages.filter((each) => each.parent === message.parent && each.role === message.role)
  }

  private find(id: number): Message | undefined {
    return this.messages.find((message) => message.id === id)
  }

  private store(message: Message): void {
    const at = this.messages.findIndex((each) => each.id === message.id)
    if (at >= 0) this.messages[at] = message
    else this.messages.push(message)
  }

  private take(chat: Chat): void {
    this.chat = chat
    this.current = chat.current
    this.options = { mode: chat.mode, system: chat.system, temperature: chat.temperature, max_tokens: chat.max_tokens }
    chats.put(chat)
  }

  // ---- opening and leaving ------------------------------------------------------------------------------------

  async open(id: string): Promise<void> {
    this.loading = true
    this.opened = id
    try {
      const { messages, ...chat } = await get<Chat & { messages: Message[] }>(`/api/chats/${encodeURIComponent(id)}`)
      if (this.closed) return
      this.messages = messages
      this.chat = chat
      this.current = chat.current
      this.options = { mode: chat.mode, system: chat.system, temperature: chat.temperature, max_tokens: chat.max_tokens }
      if (chat.running !== null) void this.watch(chat.running)
    } catch (error) {
      if (error instanceof ApiError && error.kind === 'missing') this.missing = true
      else this.fail(error, () => void this.open(id))
    }
    this.loading = false
  }

  close(): void {
    this.closed = true
    this.watching?.abort()
    if (this.empty) void remove(`/api/chats/${this.empty}`).catch(() => {})
  }

  private fail(error: unknown, retry: () => void): void {
    if (error instanceof DOMException && error.name === 'AbortError') return
    const problem = error instanceof ApiError ? error : new ApiError(String(error), 500, 'fault')
    this.error = { problem, retry }
  }

  // ---- asking -------------------------------------------------------------------------------------------------

  /** Returns whether it was taken; if not, `error` says why and the words are still the caller's. */
  async send(draft: Draft, parent?: number | null): Promise<boolean> {
    this.error = null
    if (this.temporary) return this.sendTemporary(draft, parent === undefined ? this.current : parent)
    const before = this.current
    if (parent !== undefined) this.current = parent
    this.pending = draft
    try {
      const id = await this.ensureChat()
      const body: Record<string, unknown> = { ...draft }
      if (parent !== undefined) body.parent = parent
      const made = await post<{ chat: Chat; message: Message; answer: Message }>(`/api/chats/${id}/messages`, body)
      this.pending = null
      this.empty = null
      this.store(made.message)
      this.store(made.answer)
      this.take(made.chat)
      void this.watch(made.answer.id)
      return true
    } catch (error) {
      this.pending = null
      this.current = before
      this.fail(error, () => void this.send(draft, parent))
      return false
    }
  }

  /** A chat becomes one with its first message: if that is refused, the next try uses the same, and leaving drops it. */
  private async ensureChat(): Promise<string> {
    const known = this.chat?.id ?? this.opened // also one that could not be loaded: no message begins another chat
    if (known) return known
    this.empty ??= (await post<Chat>('/api/chats', $state.snapshot(this.options))).id
    return this.empty
  }

  async regenerate(message: Message): Promise<void> {
    if (this.temporary) return this.answerTemporary(message.role === 'user' ? message.id : message.parent!)
    await this.begin(`messages/${message.id}/regenerate`, () => void this.regenerate(message))
  }

  async resume(message: Message): Promise<void> {
    if (this.temporary) return this.answerTemporary(message.parent!, message)
    await this.begin(`messages/${message.id}/continue`, () => void this.resume(message))
  }

  private async begin(what: string, retry: () => void): Promise<void> {
    if (this.busy) return
    this.error = null
    this.starting = true
    try {
      const { chat, answer } = await post<{ chat: Chat; answer: Message }>(`/api/chats/${this.chat!.id}/${what}`)
      this.store(answer)
      this.take(chat)
      void this.watch(answer.id)
    } catch (error) {
      this.fail(error, retry)
    }
    this.starting = false
  }

  async stop(): Promise<void> {
    const id = this.running
    if (id === null || this.stopping) return
    if (this.temporary) {
      this.watching?.abort()
      return
    }
    this.stopping = true // nothing more is drawn from here on; what was delivered until it took effect comes with the answer
    try {
      const message = await post<Message>(`/api/chats/${this.chat!.id}/messages/${id}/stop`)
      this.watching?.abort()
      this.end(message)
      void chats.load() // the stream's own end, which has the chat, was not waited for
    } catch (error) {
      this.fail(error, () => void this.stop())
    }
    this.stopping = false
  }

  async select(message: Message): Promise<void> {
    let leaf = message
    for (;;) {
      const below = this.messages.filter((each) => each.parent === leaf.id)
      if (!below.length) break
      leaf = below.reduce((latest, each) => (each.id > latest.id ? each : latest))
    }
    this.current = leaf.id
    if (this.temporary || !this.chat) return
    try {
      this.take(await patch<Chat>(`/api/chats/${this.chat.id}`, { current: leaf.id }, { keepalive: true }))
    } catch (error) {
      this.fail(error, () => void this.select(message))
    }
  }

  async configure(changes: Partial<Sampling>): Promise<void> {
    Object.assign(this.options, changes)
    const id = this.chat?.id ?? this.empty
    if (this.temporary || !id) return
    try {
      const changed = await patch<Chat>(`/api/chats/${id}`, changes)
      if (this.chat) this.take(changed)
    } catch (error) {
      this.fail(error, () => void this.configure(changes))
    }
  }

  // ---- watching -----------------------------------------------------------------------------------------------

  private async watch(id: number): Promise<void> {
    this.watching?.abort()
    const control = new AbortController()
    this.watching = control
    this.running = id
    this.rate = 0
    for (let failures = 0; !control.signal.aborted && !this.closed; ) {
      const before = this.find(id)?.offset ?? 0
      try {
        const url = `/api/chats/${this.chat!.id}/messages/${id}/stream?offset=${before}`
        const response = await request('GET', url, undefined, { signal: control.signal, headers: { accept: 'text/event-stream' } })
        this.lost = false
        if (await this.follow(id, response, control.signal)) return
      } catch (error) {
        if (control.signal.aborted || this.closed) return
        if (error instanceof ApiError && error.status !== 0 && error.status < 500) {
          this.running = null
          this.fail(error, () => void this.watch(id))
          return
        }
      }
      failures = (this.find(id)?.offset ?? 0) > before ? 0 : failures + 1
      this.lost = failures > 1
      await pause(RETRIES[Math.min(failures, RETRIES.length - 1)]!, control.signal)
    }
  }

  /** Apply a stream's events, at most once a frame; true when it came to its end. */
  private async follow(id: number, response: Response, signal: AbortSignal): Promise<boolean> {
    const started = performance.now()
    let first = 0
    let firstTokens = 0
    let text = ''
    let offset = 0
    let frame = 0
    const apply = (): void => {
      frame = 0
      const message = this.find(id)
      if (!message || !text || this.stopping || message.status !== 'running') return // stopped meanwhile: what is stored is all there is
      message.content += text
      message.offset = offset
      text = ''
    }
    for await (const { data } of events(response)) {
      if (signal.aborted) return true
      const event = data as StreamEvent
      if (event.type === 'text') {
        text += event.text
        offset = event.offset
        if (!first) {
          first = performance.now()
          firstTokens = event.completion_tokens
        } else if (performance.now() - first > 400) {
          this.rate = ((event.completion_tokens - firstTokens) * 1000) / (performance.now() - first)
        }
        frame ||= schedule(apply)
        if (this.temporary) this.localUsage(id, event.completion_tokens, performance.now() - started)
      } else {
        apply()
        this.end({ ...event.message, id, parent: this.find(id)?.parent ?? event.message.parent }, event.chat)
        return true
      }
    }
    apply()
    return false
  }

  private end(message: Message, chat?: Chat): void {
    this.running = null
    this.lost = false
    this.store(message)
    if (chat) {
      chats.put(chat)
      if (this.chat?.id === chat.id) this.chat = chat
    }
    this.finished = message
    void session.loadBalance()
  }

  // ---- temporary chats ----------------------------------------------------------------------------------------

  private local(fields: Partial<Message> & Pick<Message, 'role' | 'parent'>): Message {
    const id = 1 + Math.max(0, ...this.messages.map((message) => message.id))
    const message: Message = { id, content: '', created: Date.now() / 1000, status: 'done', attachments: [], ...fields }
    this.messages.push(message)
    this.current = id
    return message
  }

  private localUsage(id: number, tokens: number, ms: number): void {
    const message = this.find(id)
    if (message) message.usage = { prompt_tokens: 0, cached_tokens: 0, completion_tokens: tokens }
    if (message) message.ms = ms
  }

  private async sendTemporary(draft: Draft, parent: number | null): Promise<boolean> {
    const question = this.local({ role: 'user', parent, content: draft.content, attachments: draft.attachments })
    void this.answerTemporary(question.id)
    return true
  }

  private async answerTemporary(parent: number, resumed?: Message): Promise<void> {
    this.error = null
    this.current = parent
    const sent = this.path.map(({ role, content, attachments }) => ({ role, content: withFiles(content, attachments) }))
    const answer = resumed ?? this.local({ role: 'assistant', parent, status: 'running' })
    this.current = answer.id
    if (resumed) {
      sent.push({ role: 'assistant', content: resumed.content })
      this.find(resumed.id)!.status = 'running'
    }
    const control = new AbortController()
    this.watching = control
    this.running = answer.id
    this.rate = 0
    try {
      const body = { messages: sent, ...$state.snapshot(this.options) }
      const response = await request('POST', '/api/temporary', body, { signal: control.signal, headers: { accept: 'text/event-stream' } })
      if (await this.followTemporary(answer.id, response, control.signal, resumed?.content ?? '')) return
      this.cut(answer.id, 'failed')
    } catch (error) {
      this.cut(answer.id, 'stopped')
      if (this.find(answer.id)?.content === '') this.forget(answer.id)
      this.fail(error, () => void this.answerTemporary(parent, resumed))
    }
  }

  private async followTemporary(id: number, response: Response, signal: AbortSignal, before: string): Promise<boolean> {
    const done = await this.follow(id, response, signal)
    const message = this.find(id)
    if (done && before && message && !message.content.startsWith(before)) message.content = before + message.content
    if (signal.aborted) this.cut(id, 'stopped')
    return done
  }

  private cut(id: number, status: 'stopped' | 'failed'): void {
    this.running = null
    const message = this.find(id)
    if (message?.status === 'running') message.status = status
    if (message) this.finished = message
    void session.loadBalance()
  }

  private forget(id: number): void {
    const parent = this.find(id)?.parent ?? null
    this.messages = this.messages.filter((message) => message.id !== id)
    this.current = parent
  }
}

export function withFiles(content: string, attachments: Attachment[] = []): string {
  return [...attachments.map(({ name, text }) => `${name}:\n\n${text}`), content].join('\n\n')
}

/** The next frame, or soon when the page is hidden and draws none. */
function schedule(action: () => void): number {
  return document.hidden ? window.setTimeout(action, 100) : requestAnimationFrame(action)
}
