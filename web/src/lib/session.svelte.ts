// Who is signed in, what is served here, what is left of the money.

import { get, post, whenSignedOut } from './api'
import { forgetDrafts } from './drafts'
import { go } from './router.svelte'
import type { Balance, Model, Session, User } from './types'

class Current {
  ready = $state(false)
  failed = $state(false)
  data: Session | null = $state(null)
  balance: Balance | null = $state(null)
  /** Where a visitor wanted to go before they were asked to sign in. */
  wanted = '/'

  get user(): User | null {
    return this.data?.user ?? null
  }

  get model(): Model | null {
    return this.data?.models[0] ?? null
  }

  get currency(): string {
    return this.data?.currency ?? 'USD'
  }

  get termsOpen(): boolean {
    return this.user !== null && this.data!.terms.accepted < this.data!.terms.version
  }

  async load(): Promise<void> {
    try {
      this.data = await get<Session>('/api/session')
      this.failed = false
      if (this.user) void this.loadBalance()
    } catch {
      this.failed = true
    }
    this.ready = true
  }

  async loadBalance(): Promise<void> {
    try {
      this.balance = await get<Balance>('/api/balance')
    } catch {
      // what was known stays
    }
  }

  askToSignIn(): void {
    this.wanted = location.pathname
    go('/login', { replace: true })
  }

  async signOut(): Promise<void> {
    forgetDrafts()
    try {
      await post('/api/logout')
    } finally {
      location.assign('/login')
    }
  }
}

export const session = new Current()

whenSignedOut(() => {
  if (!session.data?.user) return
  session.data.user = null
  if (!location.pathname.startsWith('/s/')) session.askToSignIn()
})
