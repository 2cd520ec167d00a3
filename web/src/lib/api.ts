// Requests to our own origin, and what can go wrong with them as one class.

export type Kind = 'offline' | 'login' | 'forbidden' | 'balance' | 'missing' | 'busy' | 'engine' | 'invalid' | 'fault'

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string,
    readonly retryAfter: number | null = null,
  ) {
    super(message)
  }

  /** Nobody is signed in any more; a wrong password, which is a 401 too, is something else. */
  get signedOut(): boolean {
    return this.code === 'not_signed_in' || this.code === 'session_ended'
  }

  get kind(): Kind {
    if (this.status === 0) return 'offline'
    if (this.signedOut) return 'login'
    if (this.status === 402) return 'balance'
    if (this.status === 403) return 'forbidden'
    if (this.status === 404) return 'missing'
    if (this.status === 429) return 'busy'
    if (this.status === 503) return 'engine'
    return this.status >= 500 ? 'fault' : 'invalid'
  }
}

/** Called when the session has ended, so that the page can ask to sign in. */
let onSignedOut: () => void = () => {}
export function whenSignedOut(action: () => void): void {
  onSignedOut = action
}

interface Options {
  signal?: AbortSignal
  headers?: Record<string, string>
  keepalive?: boolean
}

export async function request(method: string, path: string, body?: unknown, options: Options = {}): Promise<Response> {
  const headers: Record<string, string> = { accept: 'application/json', ...options.headers }
  if (body !== undefined) headers['content-type'] = 'application/json'
  let response: Response
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: 'same-origin',
      signal: options.signal,
      keepalive: options.keepalive,
    })
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error
    throw new ApiError('the server was not reached', 0, 'offline')
  }
  if (!response.ok) throw await failure(response)
  return response
}

async function failure(response: Response): Promise<ApiError> {
  let message = response.statusText || `HTTP ${response.status}`
  let code = 'unknown'
  try {
    const { error } = (await response.json()) as { error: { message: string; code: string } }
    message = error.message
    code = error.code
  } catch {
    // a proxy's own page: the status has to do
  }
  const wait = Number(response.headers.get('retry-after'))
  const error = new ApiError(message, response.status, code, Number.isFinite(wait) && wait > 0 ? wait : null)
  if (error.signedOut) onSignedOut()
  return error
}

async function json<T>(method: string, path: string, body?: unknown, options?: Options): Promise<T> {
  return (await request(method, path, body, options)).json() as Promise<T>
}

export const get = <T>(path: string, options?: Options): Promise<T> => json<T>('GET', path, undefined, options)
export const post = <T>(path: string, body: unknown = {}, options?: Options): Promise<T> => json<T>('POST', path, body, options)
export const patch = <T>(path: string, body: unknown, options?: Options): Promise<T> => json<T>('PATCH', path, body, options)
export const remove = <T>(path: string): Promise<T> => json<T>('DELETE', path)

export function once(): Record<string, string> {
  return { 'idempotency-key': crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` }
}

export interface Event {
  name: string
  id: string
  data: unknown
}

/** Server-sent events of a response, as they come. Comments are skipped. */
export async function* events(response: Response): AsyncGenerator<Event> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      rest += value.replace(/\r\n?/g, '\n')
      let end: number
      while ((end = rest.indexOf('\n\n')) >= 0) {
        const event = parseEvent(rest.slice(0, end))
        rest = rest.slice(end + 2)
        if (event) yield event
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

function parseEvent(block: string): Event | null {
  let name = 'message'
  let id = ''
  const data: string[] = []
  for (const line of block.split('\n')) {
    const [, field, value] = /^(\w+): ?(.*)$/.exec(line) ?? []
    if (field === 'event') name = value!
    else if (field === 'id') id = value!
    else if (field === 'data') data.push(value!)
  }
  return data.length ? { name, id, data: JSON.parse(data.join('\n')) as unknown } : null
}

export function download(name: string, content: Blob): void {
  const anchor = document.createElement('a')
  anchor.href = URL.createObjectURL(content)
  anchor.download = name
  anchor.click()
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000)
}
