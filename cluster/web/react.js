// Hooks for React 18 and later over a Harbor client. Queries and mutations need none: `attach` keeps those of @tanstack/react-query live.

import { createContext, createElement, useCallback, useContext, useEffect, useRef, useState, useSyncExternalStore } from 'react';
import { realtimeStream } from './guide.js';

const Context = createContext(null);

/** Gives its children the client. */
export const HarborProvider = ({ harbor, children }) => createElement(Context.Provider, { value: harbor }, children);

export function useHarbor() {
  const harbor = useContext(Context);
  if (!harbor) throw new Error('useHarbor needs a HarborProvider above it');
  return harbor;
}

export function useConnectionState() {
  const harbor = useHarbor();
  const subscribe = useCallback((changed) => harbor.on('state', changed), [harbor]);
  return useSyncExternalStore(subscribe, () => harbor.state, () => 'connecting');
}

export const useOnlineStatus = () => useConnectionState() === 'connected';

/** Mutations of this client that are not settled. */
export function useMutations() {
  const harbor = useHarbor();
  const [mutations, setMutations] = useState(harbor.mutations);
  useEffect(() => {
    const look = () => setMutations(harbor.mutations);
    look();
    return harbor.on('mutation', look);
  }, [harbor]);
  return mutations;
}

/** As `realtimeStream`; callbacks may be others at each rendering. */
export function useRealtimeStream({ channel, enabled = true, events = {}, ...more }) {
  const harbor = useHarbor();
  const latest = useRef();
  latest.current = { events, ...more };
  const stream = useRef();
  const name = JSON.stringify([channel, enabled, Object.keys(events)]);
  useEffect(() => {
    const late = (callback) => (...given) => callback(latest.current)?.(...given);
    stream.current = realtimeStream({
      harbor,
      channel,
      enabled,
      events: Object.fromEntries(Object.keys(events).map((each) => [each, late((now) => now.events[each])])),
      replay: more.replay,
      ...(more.transform && { transform: late((now) => now.transform) }),
      ...Object.fromEntries(['onConnect', 'onDisconnect', 'onReconnecting', 'onReconnected', 'onError'].map((each) => [each, late((now) => now[each])])),
    });
    return () => stream.current.unsubscribe();
  }, [harbor, name]);
  const send = useCallback((...said) => stream.current?.send(...said), []);
  return { send, connectionState: useConnectionState() };
}

/** Who is in a topic; `state`, where it is given, is ours there. */
export function usePresence(topic, state) {
  const harbor = useHarbor();
  const [members, setMembers] = useState([]);
  const room = useRef();
  useEffect(() => {
    room.current = harbor.presence(topic, {}, (now) => setMembers([...now.members.values()]));
    return () => {
      room.current.leave();
      setMembers([]); // those of another topic are not known yet
    };
  }, [harbor, topic]);
  const told = JSON.stringify(state);
  useEffect(() => {
    if (state !== undefined) room.current.update(state);
  }, [harbor, topic, told]);
  const update = useCallback((next) => room.current?.update(next), []);
  return { members, update };
}
