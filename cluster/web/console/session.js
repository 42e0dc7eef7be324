// The connection, the token, and what the operator may do. The token is kept for this tab alone.

import { connect } from '/client.js';

const TOKEN = 'harbor.token';

function stored() {
  try {
    return sessionStorage.getItem(TOKEN);
  } catch {
    return null;
  }
}

function store(token) {
  try {
    if (token === null) sessionStorage.removeItem(TOKEN);
    else sessionStorage.setItem(TOKEN, token);
  } catch {
    // It holds for this page.
  }
}

/** The console's side of one cluster. `changed` is called when anything here is another. */
export class Session {
  constructor(changed) {
    this.changed = changed;
    this.token = stored();
    this.notices = [];
    this.begin();
  }

  begin() {
    this.state = 'connecting';
    this.reason = null;
    /** Whether the admin grant is there; null: it is not known yet. */
    this.isAdmin = null;
    this.harbor = connect({ ...(this.token ? { token: this.token } : {}), pauseHiddenAfter: 5_000, linger: 2_000 });
    this.isBarred = false;
    this.refusal = null;
    const { harbor } = this;
    if (!this.token) this.probe(harbor);
    harbor.on('state', (state, reason) => {
      if (harbor !== this.harbor || this.isBarred) return;
      if (state === 'needs-auth') this.isAdmin = null;
      this.state = state;
      this.reason = reason ?? null;
      this.changed();
    });
    harbor.on('notice', (notice) => this.note(notice));
    this.overview = undefined;
    this.heardAt = 0;
    this.watching = harbor.subscribe({ key: ['$harbor', 'overview'] }, (update) => {
      if (harbor !== this.harbor) return;
      if (update.type === 'refused') {
        if (update.error?.code === 'FORBIDDEN') this.isAdmin = false;
        this.refusal = update.error;
      } else if (update.type === 'data') {
        this.isAdmin = true;
        this.overview = update.entry.data;
        this.heardAt = performance.now();
      }
      this.changed();
    });
  }

  /** Where credentials are needed a socket without any is closed after ten seconds; a request says so at once. */
  async probe(harbor) {
    const answer = await fetch('/v1/keys?limit=1&prefix=%5B%22%24harbor%22%5D').catch(() => null);
    if (answer?.status !== 401 || harbor !== this.harbor) return;
    this.isBarred = true;
    this.state = 'needs-auth';
    harbor.close();
    this.changed();
  }

  /** Begins anew with another token, or (null) without. */
  sign(token) {
    this.token = token;
    store(token);
    this.harbor.close();
    this.begin();
    this.changed();
  }

  note(notice) {
    this.notices.unshift({ ...notice, time: Date.now(), own: true });
    this.notices.length = Math.min(this.notices.length, 200);
    this.changed();
  }
}
