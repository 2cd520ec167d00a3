// What docs/site-api.md says, as types.

export interface User {
  id: number
  email: string
  name: string
  role: 'user' | 'admin'
  state: 'active' | 'disabled' | 'deleted'
  created: number
}

export interface Price {
  hit: string
  miss: string
  output: string
}

export interface Licence {
  name: string
  url: string
  text?: string
  restrictions: string[]
  note?: string
}

export type Mode = 'chat' | 'coder'

export interface Model {
  id: string
  context_length: number
  max_output_tokens: number
  temperature: number
  owned_by: string
  /** The very small one that comes with leadline. */
  embedded: boolean
  price: Price | null
  licence: Licence | null
  modes: { id: Mode; alias: string }[]
}

export interface Session {
  user: User | null
  signup: 'open' | 'invite' | 'closed'
  currency: string
  terms: { version: number; accepted: number }
  models: Model[]
  name: string
  version: string
  about: string
}

export interface Chat {
  id: string
  title: string
  title_by: 'auto' | 'user'
  titling: boolean
  pinned: boolean
  mode: Mode
  system: string
  temperature: number | null
  max_tokens: number | null
  created: number
  updated: number
  current: number | null
  running: number | null
}

export interface Attachment {
  name: string
  text: string
}

export interface Usage {
  prompt_tokens: number
  cached_tokens: number
  completion_tokens: number
}

export interface Message {
  id: number
  parent: number | null
  role: 'user' | 'assistant'
  content: string
  created: number
  attachments?: Attachment[]
  status: 'running' | 'done' | 'stopped' | 'failed'
  finish_reason?: 'stop' | 'length' | null
  stop_reason?: string | null
  error?: { message: string; code: string } | null
  model?: string | null
  temperature?: number | null
  usage?: Usage | null
  cost?: string | null
  first_token_ms?: number | null
  ms?: number | null
  context_tokens?: number | null
  offset?: number
}

export type StreamEvent =
  | { type: 'text'; text: string; offset: number; completion_tokens: number }
  | { type: 'done'; chat?: Chat; message: Message }

export interface Page<T> {
  data: T[]
  next: string | null
}

export interface Balance {
  currency: string
  total: string
  granted: string
  topped_up: string
  held: string
  buckets: { kind: string; balance: string; expires: number | null }[]
}

export interface ApiKey {
  id: number
  name: string
  key: string
  created: number
  expires: number | null
  last_used: number | null
  models: string[] | null
  requests_per_minute: number | null
  concurrency: number | null
  control_tokens: boolean
  spend_cap: string | null
  monthly_cap: string | null
  spent: string
  held: string
  secret?: string | null
}

export interface SessionRow {
  id: string
  name: string
  created: number
  expires: number
  last_used: number
  current: boolean
}

export interface UsageRow {
  day?: string
  model?: string
  key?: number | null
  key_name?: string
  user?: number
  email?: string
  requests: number
  cached_tokens: number
  miss_tokens: number
  completion_tokens: number
  amount: string
}

export interface Preset {
  id: number
  name: string
  system: string
  temperature: number | null
}

export interface Share {
  id: string
  path: string
  chat: string
  title: string
  created: number
}

export interface Shared {
  title: string
  created: number
  messages: Pick<Message, 'role' | 'content' | 'attachments' | 'created' | 'model'>[]
}

export interface Found {
  chat: Chat
  message: number | null
  snippet: [string, boolean][]
  created: number
}
