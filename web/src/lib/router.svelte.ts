// The page is a function of the address. Links are ordinary anchors; a click on one of ours changes no document.

export const route = $state({ path: location.pathname, hash: location.hash, query: location.search })

function follow(): void {
  route.path = location.pathname
  route.hash = location.hash
  route.query = location.search
}

export function go(to: string, options: { replace?: boolean } = {}): void {
  if (to === location.pathname + location.search + location.hash) return
  history[options.replace ? 'replaceState' : 'pushState'](null, '', to)
  follow()
}

const PAGES = /^\/(?:$|c\/|s\/|login$|signup$|signin$|reset$|terms$|platform(?:\/|$)|admin(?:\/|$))/

export function watchRoute(): void {
  addEventListener('popstate', follow)
  addEventListener('hashchange', follow)
  document.addEventListener('click', (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return
    const anchor = (event.target as Element | null)?.closest('a')
    if (!anchor || anchor.target || anchor.hasAttribute('download') || anchor.origin !== location.origin) return
    if (!PAGES.test(anchor.pathname)) return
    event.preventDefault()
    go(anchor.pathname + anchor.search + anchor.hash)
  })
}
