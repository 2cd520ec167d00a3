// The list of chats at the side.

import { get, patch, post, remove } from './api'
import { t } from './i18n.svelte'
import { go, route } from './router.svelte'
import { complain, toast } from './toasts.svelte'
import type { Chat, Page } from './types'

class Chats {
  pinned: Chat[] = $state([])
  recent: Chat[] = $state([])
  next: string | null = $state(null)
  loaded = $state(false)
  failed = $state(false)
  /** The chat whose title was written last, to be shown as new. */
  titled: string | null = $state(null)
  private busy = false
  private writing: string[] = []
  private asking = 0

  find(id: string): Chat | undefined {
    return this.pinned.find((chat) => chat.id === id) ?? this.recent.find((chat) => chat.id === id)
  }

  load = async (): Promise<void> => {
    try {
      const page = await get<Page<Chat> & { pinned: Chat[] }>('/api/chats?limit=50')
      const older = this.loaded ? this.recent.slice(page.data.length) : [] // what was scrolled to stays
      const fresh = new Set([...page.data, ...page.pinned].map((chat) => chat.id))
      this.pinned = page.pinned
      this.recent = page.next === null ? page.data : [...page.data, ...older.filter((chat) => !fresh.has(chat.id))]
      if (!older.length || page.next === null) this.next = page.next
      this.failed = false
    } catch (error) {
      if (!this.loaded) this.failed = true // a list that is there is better than none
    }
    this.loaded = true
    this.awaitTitles()
  }

  async more(): Promise<void> {
    if (!this.next || this.busy) return
    this.busy = true
    try {
      const page = await get<Page<Chat>>(`/api/chats?limit=50&cursor=${encodeURIComponent(this.next)}`)
      const known = new Set(this.recent.map((chat) => chat.id))
      this.recent.push(...page.data.filter((chat) => !known.has(chat.id)))
      this.next = page.next
    } catch (error) {
      complain(error)
    }
    this.busy = false
  }

  /** What the server last said of a chat: changed in place, or put where it belongs. */
  put(chat: Chat): void {
    this.place(chat)
    this.awaitTitles()
  }

  private place(chat: Chat): void {
    const list = chat.pinned ? this.pinned : this.recent
    const other = chat.pinned ? this.recent : this.pinned
    const elsewhere = other.findIndex((each) => each.id === chat.id)
    if (elsewhere >= 0) other.splice(elsewhere, 1)
    const at = list.findIndex((each) => each.id === chat.id)
    const moved = at < 0 || list[at]!.updated !== chat.updated
    if (!moved) {
      list[at] = chat
      return
    }
    if (at >= 0) list.splice(at, 1)
    const place = list.findIndex((each) => each.updated <= chat.updated)
    list.splice(place < 0 ? list.length : place, 0, chat)
  }

  /** While the model writes a title the list is asked again, so that it is shown when it stands. */
  private awaitTitles(): void {
    const writing = [...this.pinned, ...this.recent].filter((chat) => chat.titling).map((chat) => chat.id)
    const written = this.writing.find((id) => !writing.includes(id))
    if (written) this.titled = written
    this.writing = writing
    clearTimeout(this.asking)
    if (writing.length) this.asking = window.setTimeout(this.load, 1000)
  }

  private drop(id: string): void {
    this.pinned = this.pinned.filter((chat) => chat.id !== id)
    this.recent = this.recent.filter((chat) => chat.id !== id)
  }

  async change(chat: Chat, changes: Partial<Chat>): Promise<Chat | null> {
    try {
      const changed = await patch<Chat>(`/api/chats/${chat.id}`, changes)
      this.put(changed)
      return changed
    } catch (error) {
      complain(error)
      return null
    }
  }

  async remove(chat: Chat): Promise<void> {
    try {
      await remove(`/api/chats/${chat.id}`)
    } catch (error) {
      complain(error)
      return
    }
    this.drop(chat.id)
    const open = route.path === `/c/${chat.id}`
    if (open) go('/')
    toast(t('chat.deleted', { title: chat.title || t('chat.untitled') }), {
      label: t('undo'),
      seconds: 10,
      action: async () => {
        try {
          this.put(await post<Chat>(`/api/chats/${chat.id}/restore`))
          if (open) go(`/c/${chat.id}`)
        } catch (error) {
          complain(error)
        }
      },
    })
  }

  async removeAll(): Promise<void> {
    const all = [...this.pinned, ...this.recent]
    try {
      const { count } = await remove<{ count: number }>('/api/chats')
      this.pinned = []
      this.recent = []
      this.next = null
      go('/')
      toast(t('chat.deletedAll', { count }), {
        label: t('undo'),
        seconds: 15,
        action: async () => {
          await Promise.allSettled(all.map((chat) => post(`/api/chats/${chat.id}/restore`)))
          await this.load()
        },
      })
    } catch (error) {
      complain(error)
    }
  }
}

export const chats = new Chats()
