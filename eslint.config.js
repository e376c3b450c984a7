// The JavaScript of the package and of JupyterLab's cards; `tests/check.py` runs it.
const { createRequire } = require('node:module');
const js = createRequire(require.resolve(process.argv[1]))('@eslint/js'); // the one that ESLint brings

const BROWSER = [
  'DataView', 'DocumentFragment', 'Image', 'MutationObserver', 'TextDecoder', 'TextEncoder',
  'URLSearchParams', 'WebSocket', 'XMLSerializer', 'addEventListener', 'atob', 'console', 'crypto', 'document',
  'fetch', 'getComputedStyle', 'history', 'location', 'navigator', 'setInterval', 'setTimeout', 'window',
];
const NODE = ['module', 'process', 'require'];
const names = list => Object.fromEntries(list.map(name => [name, 'readonly']));

module.exports = [
  { ignores: ['.venv/', 'build/', '**/.ipynb_checkpoints/', '**/node_modules/'] },
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: 2022, sourceType: 'script', globals: names(BROWSER) },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      eqeqeq: 'error',
      'no-var': 'error',
      'prefer-const': ['error', { destructuring: 'all' }],
      'max-len': ['error', { code: 119, ignoreStrings: true }], // an icon's path is one string
    },
  },
  { files: ['eslint.config.js'], languageOptions: { globals: names(NODE) } },
];
