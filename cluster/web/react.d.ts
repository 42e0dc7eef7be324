// Types of react.js: what it does stands in docs/browser.md.

import type { Harbor, Member, Mutation, State } from './client.js';
import type { RealtimeStreamOptions } from './guide.js';

export function HarborProvider(props: { harbor: Harbor; children?: any }): any;
export function useHarbor(): Harbor;
export function useConnectionState(): State;
export function useOnlineStatus(): boolean;
export function useMutations(): readonly Mutation[];
export function useRealtimeStream(options: Omit<RealtimeStreamOptions, 'harbor'>): {
  send(name: string, data?: unknown): Mutation | void;
  connectionState: State;
};
export function usePresence(topic: string, state?: unknown): { members: Member[]; update(state: unknown): void };
