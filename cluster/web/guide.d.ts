// Types of guide.js: what it does stands in docs/browser.md.

import type { Harbor, HarborError, Key, Member, Mutation, State } from './client.js';

export interface QueryKeyFactory {
  all(): Key;
  lists(): Key;
  list(filters?: unknown): Key;
  details(): Key;
  detail(id: unknown): Key;
  key(...parts: unknown[]): Key;
}
export function createQueryKeyFactory(name: string): QueryKeyFactory;

export interface StreamToQueryCache {
  queryKey: Key;
  data: unknown;
  mode?: 'replace' | 'append' | 'prepend' | 'merge' | 'upsert';
  /** Of `append` and `upsert` the last, of `prepend` the first so many stay. */
  maxItems?: number;
  /** The member that says which item it is. Default: `id`. */
  by?: string;
}
export function streamToQueryCache(queryClient: any, options: StreamToQueryCache): void;

export interface ResourceClient<T = any> {
  keys: QueryKeyFactory;
  list(filters?: unknown, options?: { signal?: AbortSignal }): Promise<T[]>;
  get(id: unknown, options?: { signal?: AbortSignal }): Promise<T>;
  create(values: Partial<T>, options?: object): Promise<T>;
  update(id: unknown, values: Partial<T>, options?: object): Promise<T>;
  /** `values`: members that say in which lists it is, such as `{channelId}`. */
  delete(id: unknown, values?: Partial<T>, options?: object): Promise<unknown>;
}
export function createResourceClient<T = any>(options: { harbor: Harbor; resource: string }): ResourceClient<T>;

export interface OnlineStatus {
  readonly current: boolean;
  subscribe(listener: (isOnline: boolean) => void): () => void;
}
export function onlineStatus(harbor: Harbor): OnlineStatus;

export interface StreamEvent {
  event: string;
  data: any;
  id?: unknown;
}
export interface RealtimeStreamOptions {
  harbor: Harbor;
  /** A query key, or a text: the entry `["channel", TEXT]`, and the topic of presence. */
  channel: Key | string;
  events?: { [name: string]: (data: any, event?: any) => void };
  enabled?: boolean;
  /** From an item of the list to `{event, data}`. */
  transform?: (item: any) => StreamEvent;
  /** Also what was in the list before. */
  replay?: boolean;
  onConnect?: () => void;
  onDisconnect?: (reason?: HarborError) => void;
  onReconnecting?: () => void;
  onReconnected?: () => void;
  onError?: (error: HarborError) => void;
}
export interface RealtimeStream {
  readonly connectionState: State;
  send(name: string, data?: unknown): Mutation | void;
  unsubscribe(): void;
}
export function realtimeStream(options: RealtimeStreamOptions): RealtimeStream;
export type { Member };
