import { createHash } from 'node:crypto'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig, type Plugin } from 'vite'
// @ts-expect-error a plain script, shared with no types
import { sourceDigest } from './sources.mjs'

/** Writes licences.txt: the licence of every package of which something is in the build. */
function licences(): Plugin {
  return {
    name: 'leadline-licences',
    generateBundle() {
      const packages = new Set<string>(['uplot'])
      for (const id of this.getModuleIds()) {
        const inside = id.split('/node_modules/').at(-1)!
        if (inside !== id) packages.add(inside.split('/').slice(0, inside.startsWith('@') ? 2 : 1).join('/'))
      }
      const texts = [...packages].sort().map(licence)
      this.emitFile({ type: 'asset', fileName: 'licences.txt', source: texts.join(`\n${'-'.repeat(80)}\n\n`) })
    },
  }
}

function licence(name: string): string {
  const folder = join(import.meta.dirname, 'node_modules', name)
  if (!existsSync(folder)) return ''
  const { version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as Record<string, string>
  const files = readdirSync(folder).filter((file) => /^licen[cs]e/i.test(file)).sort()
  return [`${name} ${version} (${license})`, ...files.map((file) => readFileSync(join(folder, file), 'utf8').trim())].join('\n\n') + '\n'
}

/** Writes build.json: which sources this is the build of, and the digest of every file of it. */
function record(): Plugin {
  return {
    name: 'leadline-record',
    generateBundle: {
      order: 'post',
      handler(_, bundle) {
        const files: Record<string, string> = {}
        for (const name of Object.keys(bundle).sort()) {
          const part = bundle[name]!
          const content = part.type === 'chunk' ? part.code : part.source
          files[name] = createHash('sha256').update(content).digest('hex')
        }
        const source = JSON.stringify({ sources: sourceDigest(), files }, null, 1) + '\n'
        this.emitFile({ type: 'asset', fileName: 'build.json', source })
      },
    },
  }
}

export default defineConfig({
  plugins: [svelte({ emitCss: true }), licences(), record()],
  build: {
    outDir: '../leadline/server/static',
    emptyOutDir: true,
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      output: {
        entryFileNames: 'assets/[name]-[hash].js',
        chunkFileNames: 'assets/[name]-[hash].js',
        assetFileNames: 'assets/[name]-[hash][extname]',
      },
    },
  },
  // `npm run dev` beside a running `leadline serve`
  server: { proxy: { '/api': 'http://127.0.0.1:8000', '/openapi.json': 'http://127.0.0.1:8000' } },
})
