// What this browser remembers: theme, language, and how one likes to write.

export type Theme = 'system' | 'light' | 'dark'
export type Language = 'en' | 'zh-CN'

interface Kept {
  theme: Theme
  language: Language
  sidebar: boolean
  enterSends: boolean
}

const KEY = 'leadline.settings'

function read(): Kept {
  const language: Language = document.documentElement.lang === 'zh-CN' ? 'zh-CN' : 'en'
  const defaults: Kept = { theme: 'system', language, sidebar: true, enterSends: true }
  try {
    return { ...defaults, ...(JSON.parse(localStorage.getItem(KEY) ?? '{}') as Partial<Kept>) }
  } catch {
    return defaults
  }
}

export const settings: Kept = $state(read())

export function keepSettings(): void {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings))
  } catch {
    // a private window without storage: the choice lasts as long as the page
  }
}

const prefersDark = matchMedia('(prefers-color-scheme: dark)')
const system = $state({ dark: prefersDark.matches })

/** The theme that is shown. */
export function theme(): 'light' | 'dark' {
  if (settings.theme !== 'system') return settings.theme
  return system.dark ? 'dark' : 'light'
}

export function applyTheme(): void {
  document.documentElement.dataset.theme = theme()
}

prefersDark.addEventListener('change', ({ matches }) => {
  system.dark = matches
  applyTheme()
})

/** Another window of the same person chose something. */
addEventListener('storage', ({ key, newValue }) => {
  if (key !== KEY || newValue === null) return
  Object.assign(settings, JSON.parse(newValue) as Partial<Kept>)
  document.documentElement.lang = settings.language
  applyTheme()
})

export function setTheme(theme: Theme): void {
  settings.theme = theme
  keepSettings()
  applyTheme()
}

export function setLanguage(language: Language): void {
  settings.language = language
  document.documentElement.lang = language
  keepSettings()
}
