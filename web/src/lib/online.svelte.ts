// Whether the browser has a network, and the moment it comes back.

class Network {
  up = $state(navigator.onLine)

  constructor() {
    addEventListener('online', () => (this.up = true))
    addEventListener('offline', () => (this.up = false))
  }
}

export const network = new Network()

/** Resolves after `ms`, or as soon as the network is back or the page is looked at again. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer)
      removeEventListener('online', done)
      document.removeEventListener('visibilitychange', woken)
      resolve()
    }
    const woken = (): void => {
      if (!document.hidden) done()
    }
    const timer = setTimeout(done, ms)
    addEventListener('online', done)
    document.addEventListener('visibilitychange', woken)
    signal.addEventListener('abort', done, { once: true })
  })
}
