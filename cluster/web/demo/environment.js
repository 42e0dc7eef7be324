// TanStack Query as it is published asks for this, which bundlers put in its place.
globalThis.process ??= { env: { NODE_ENV: 'production' } };
