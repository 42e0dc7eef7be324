// Types of client.js: what it does stands in docs/browser.md.

export type Key = readonly unknown[];
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type State = 'connecting' | 'connected' | 'reconnecting' | 'disconnected' | 'needs-auth' | 'closed';

/** One operation of the cluster's contract, such as `{merge_where: {key, where, value}}`. */
export type Operation = { [name: string]: { key: Key; at?: string; [argument: string]: unknown } };

export interface ConnectOptions {
  /** The gateway's address, `http(s)://` or `ws(s)://`. Default: the page's own origin. */
  url?: string | URL;
  /** Credentials, or a function that gets them: asked before each connection, and for the next when they are about to expire. */
  token?: string | (() => string | null | undefined | Promise<string | null | undefined>);
  /** `auto`: WebSocket, and server-sent events where that cannot be opened. */
  transport?: 'auto' | 'websocket' | 'sse';
  /** What mutations show before the cluster does: operations by the mutation's name. */
  optimistic?: Record<string, (variables: any, id: string) => Operation[]>;
  /** Whose offline queue this is. Without it the queue is kept only in memory where there is a token. */
  account?: string;
  /** Where the offline queue is kept. Default: IndexedDB where there is one and it is known whose it is, else memory. */
  storage?: QueueStorage;
  /** Pause while the page is hidden for so long, ms; `Infinity`: never. Default 10,000. */
  pauseHiddenAfter?: number;
  /** For how long what nobody watches any more stays subscribed, ms. Default 1,000. */
  linger?: number;
  /** Longest wait between two attempts to connect, ms. Default 30,000. */
  maxBackoff?: number;
  /** Stand-ins, for tests and for runtimes that lack them. */
  WebSocket?: typeof WebSocket;
  fetch?: typeof fetch;
}

export interface QueueStorage {
  all(): Promise<QueuedMutation[]>;
  put(item: QueuedMutation): Promise<void>;
  delete(id: string): Promise<void>;
}

export interface QueuedMutation {
  id: string;
  name: string;
  variables: unknown;
  delayMs?: number;
  /** Unix ms of when it was begun; the queue's order. */
  at: number;
}

export interface Entry<T = any> {
  key: Key;
  /** What to show: the cluster's value with this client's own mutations over it. `undefined`: there is none. */
  data: T | undefined;
  /** Of the cluster's value; only grows. 0: it never had data. */
  version: number;
  status: 'pending' | 'success' | 'error';
  isStale: boolean;
  isOffline: boolean;
  /** Unix ms. */
  dataUpdatedAt: number;
  error?: { code: string; message: string; temporary: boolean };
}

export interface Update<T = any> {
  /** `data`: there is a value to show. `status`: there is none, and `entry.status` says why. `invalidated`: it is out of date.
   *  `removed`: it is gone. `ready`: everything matching was told. `refused`: the subscription ended, with `error`. */
  type: 'data' | 'status' | 'invalidated' | 'removed' | 'ready' | 'refused';
  /** Of `data`, `status`, `invalidated` and `removed`. */
  entry?: Entry<T>;
  /** Of `data`: the server's message where one brought it: `from`, `version`, `patch`, `coalesced`, `mutations`. */
  message?: Record<string, any>;
  error?: HarborError;
}

export interface Subscription<T = any> {
  readonly entries: ReadonlyMap<string, Entry<T>>;
  /** Everything that matches was told. */
  readonly ready: boolean;
  /** The entry of an exact subscription, or one of a prefix's. */
  get(key?: Key): Entry<T> | undefined;
  /** Has its changes waited for, and fetched folded when it resumes. */
  pause(): void;
  resume(): void;
  unsubscribe(): void;
}

export interface Mutation<T = any> {
  readonly id: string;
  readonly name: string;
  readonly variables: unknown;
  /** `waiting`: it has not been sent, as there is no connection. */
  readonly status: 'waiting' | 'scheduled' | 'queued' | 'paused' | 'pending' | 'success' | 'error' | 'cancelled';
  /** Unix ms until when `undo` will do, where it waits for its delay. */
  readonly undoUntil?: number;
  /** The service's answer; rejects with a `HarborError` where it failed or was undone. */
  readonly settled: Promise<T>;
  undo(): Promise<void>;
}

export interface Member {
  member: string;
  subject: string;
  state: any;
  /** Unix ms. */
  last_active: number;
}

export interface Presence {
  readonly topic: string;
  readonly count: number;
  readonly members: ReadonlyMap<string, Member>;
  /** Joins, or changes the state; after `leave` nothing. */
  update(state: unknown): void;
  leave(): void;
}

export interface Notice {
  level: 'info' | 'success' | 'warning' | 'error';
  code: string;
  message: string;
  [more: string]: any;
}

export interface HarborEvents {
  /** The connection is in another state. */
  state: (state: State, reason?: HarborError) => void;
  notice: (notice: Notice) => void;
  /** A mutation of this client is in another status. */
  mutation: (mutation: Mutation) => void;
  /** Every message as it arrives. */
  message: (message: Record<string, any>) => void;
}

export class HarborError extends Error {
  code: string;
  temporary: boolean;
  details?: any;
}

export interface Harbor {
  readonly state: State;
  readonly url: string;
  readonly transport: 'websocket' | 'sse';
  /** This session's id, which is its member's id in presence; empty while there is none. */
  readonly session: string;
  /** Milliseconds that the cluster's clock is ahead of this machine's. */
  readonly clockOffset: number;
  /** Mutations that are not settled, oldest first. */
  readonly mutations: readonly Mutation[];

  /** Calls back at once for what is there already, then for each change. Equal subscriptions share one of the session's.
   *  `mode`: whether changes come as patches (the default) or as whole values. */
  subscribe<T = any>(what: ({ key: Key } | { prefix: Key }) & { mode?: 'patch' | 'data' }, listener?: (update: Update<T>) => void): Subscription<T>;
  /** The entry's data: what a subscription holds, else what the cluster answers; waits for a connection. */
  fetch<T = any>(key: Key, options?: { signal?: AbortSignal; force?: boolean; page?: 'next' | 'previous' }): Promise<T>;
  /** For `defaultOptions.queries.queryFn`. */
  readonly queryFn: (context: { queryKey: Key; signal?: AbortSignal }) => Promise<any>;
  /** The entry as `GET /v1/entries` answers it. */
  get(key: Key): Promise<Record<string, any>>;
  set(key: Key, data: unknown, options?: { baseVersion?: number; merge?: 'three_way'; ack?: string }): Promise<{ version: number; merged?: boolean }>;
  invalidate(key: Key, options?: { exact?: boolean }): Promise<number>;
  mutate<T = any>(
    name: string,
    variables?: unknown,
    options?: { id?: string; delayMs?: number; optimistic?: Operation[] | ((variables: any, id: string) => Operation[]) },
  ): Mutation<T>;
  undo(id: string): Promise<void>;
  /** `state` left out: watches without joining. */
  presence(topic: string, options?: { state?: unknown; watch?: 'members' | 'count' }, listener?: (presence: Presence) => void): Presence;
  /** An HTTP request to the gateway with the credentials; a path such as `/v1/cluster`. Rejects with a `HarborError`; where there was no answer, as `fetch` does. */
  request<T = any>(path: string, init?: { method?: string; body?: unknown; headers?: Record<string, string>; signal?: AbortSignal }): Promise<T>;

  /** Other credentials, from now on. */
  auth(token: string): Promise<void>;
  on<E extends keyof HarborEvents>(event: E, listener: HarborEvents[E]): () => void;
  /** Goes offline until `reconnect`: mutations wait, subscriptions keep what they hold. */
  disconnect(): void;
  reconnect(): void;
  /** Ends for good. The queue stays in its storage. */
  close(): void;
}

export function connect(options?: ConnectOptions): Harbor;

export interface AttachOptions {
  /** Which queries the cluster serves, by the beginning of their keys: `[['tasks'], ['projects', 'detail']]`. */
  keys?: Key[];
  /** The same as a function. Default without both: queries that have no `queryFn` of their own. */
  match?: (queryKey: Key, query: any) => boolean;
  /** The mutation's name by the `mutationKey` of a mutation without a `mutationFn`. Default: the key's texts, joined by dots. */
  mutationName?: (mutationKey: Key) => string | undefined;
}

/** Keeps every mounted query that the cluster serves live. Returns a function that undoes it. */
export function attach(queryClient: any, harbor: Harbor, options?: AttachOptions): () => void;

/** RFC 6902, without changing `document`; what is not touched keeps its identity. */
export function applyPatch<T = any>(document: T, patch: readonly any[]): T;
/** An operation of the contract on one value; `undefined`: there is none. */
export function applyOperation(data: any, operation: Operation): any;
/** `next`, with every part that equals the same part of `previous` taken from there. */
export function share<T>(previous: any, next: T): T;
/** TanStack query-core's `hashKey`. */
export function hashKey(key: Key): string;
export function matches(prefix: Key, key: Key): boolean;
