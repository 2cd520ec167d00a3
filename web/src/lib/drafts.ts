// Words that were not sent yet, for as long as the window is open: a reload or a look at another chat loses nothing.

const KEY = 'leadline.draft.'

export function keptDraft(chat: string): string {
  try {
    return sessionStorage.getItem(KEY + chat) ?? ''
  } catch {
    return ''
  }
}

export function keepDraft(chat: string, words: string): void {
  try {
    if (words) sessionStorage.setItem(KEY + chat, words)
    else sessionStorage.removeItem(KEY + chat)
  } catch {
    // without storage, or with too much in it, the words last as long as the page
  }
}

export function forgetDrafts(): void {
  try {
    for (const key of Object.keys(sessionStorage)) if (key.startsWith(KEY)) sessionStorage.removeItem(key)
  } catch {
    // nothing was kept
  }
}
