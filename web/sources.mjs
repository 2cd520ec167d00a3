// The digest of everything the build depends on. It is recorded in the build, so that a test without Node can tell
// whether the committed build belongs to the committed sources (tests/server/test_pages.py computes the same).
import { createHash } from 'node:crypto'
import { readFileSync, readdirSync } from 'node:fs'
import { join, relative, sep } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('.', import.meta.url))
const TOP = ['index.html', 'package.json', 'package-lock.json', 'sources.mjs', 'svelte.config.js', 'tsconfig.json', 'vite.config.ts']

function walk(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name)
    return entry.isDirectory() ? walk(path) : [path]
  })
}

export function sourceFiles() {
  const found = [...TOP.map((name) => join(ROOT, name)), ...walk(join(ROOT, 'src')), ...walk(join(ROOT, 'public'))]
  return found.map((path) => relative(ROOT, path).split(sep).join('/')).sort()
}

export function sourceDigest() {
  const digest = createHash('sha256')
  for (const name of sourceFiles()) {
    const content = createHash('sha256').update(readFileSync(join(ROOT, name))).digest('hex')
    digest.update(`${name} ${content}\n`)
  }
  return digest.digest('hex')
}
