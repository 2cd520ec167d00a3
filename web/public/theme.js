// Before the first paint, so that a dark page never flashes white.
(function () {
  try {
    var kept = JSON.parse(localStorage.getItem('leadline.settings') || '{}')
    var dark = kept.theme === 'dark' || (kept.theme !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches)
    document.documentElement.dataset.theme = dark ? 'dark' : 'light'
    document.documentElement.lang = kept.language || ((navigator.language || '').indexOf('zh') === 0 ? 'zh-CN' : 'en')
  } catch (error) {
    document.documentElement.dataset.theme = 'light'
  }
})()
