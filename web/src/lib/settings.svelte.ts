// What this browser remembers: theme, language, the last model, sampling and system prompt presets.

export type Theme = 'system' | 'light' | 'dark'
export type Language = 'en' | 'zh-CN'

export interface Prompt {
  name: string
  text: string
}

interface Kept {
  theme: Theme
  language: Language
  sidebar: boolean
  enterSends: boolean
  prompts: Prompt[]
}

const KEY = 'leadline.settings'

function read(): Kept {
  const language: Language = document.documentElement.lang === 'zh-CN' ? 'zh-CN' : 'en'
  const defaults: Kept = { theme: 'system', language, sidebar: true, enterSends: true, prompts: [] }
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

export function applyTheme(): void {
  const dark = settings.theme === 'dark' || (settings.theme === 'system' && prefersDark.matches)
  document.documentElement.dataset.theme = dark ? 'dark' : 'light'
}

prefersDark.addEventListener('change', applyTheme)

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
