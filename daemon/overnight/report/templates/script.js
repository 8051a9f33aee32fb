(() => {
  'use strict';
  const root = document.documentElement;
  const themes = ['', 'light', 'dark'];
  const names = {'': 'as the system', light: 'light', dark: 'dark'};
  const remembered = () => { try { return localStorage.getItem('overnight-theme') || ''; } catch { return ''; } };
  const setTheme = (theme) => {
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    try { localStorage.setItem('overnight-theme', theme); } catch { /* a file of its own has no storage everywhere */ }
  };
  const asked = /[#&]theme=(light|dark)\b/.exec(location.hash);
  const first = asked ? asked[1] : remembered();
  if (names[first]) root.dataset.theme = first;

  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const svg = (tag, attributes) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  function themeButton() {
    const button = document.querySelector('button.theme');
    const show = () => { button.textContent = 'Theme: ' + names[root.dataset.theme || '']; };
    button.hidden = false;
    button.addEventListener('click', () => {
      setTheme(themes[(themes.indexOf(root.dataset.theme || '') + 1) % themes.length]);
      show();
    });
    show();
  }

  // -- the map of cells: the chosen one's figures beside it, arrow keys from cell to cell

  function line(cell) {
    const plot = svg('svg', {class: 'plot similarity', width: '100%', height: 70, role: 'img',
      'aria-label': 'similarity over ' + cell.turns + ' turns'});
    const inner = svg('svg', {class: 'in', width: '100%', height: 62, y: 4, viewBox: '0 0 1000 62', preserveAspectRatio: 'none'});
    const at = ([turn, value]) => (1000 * (turn - 1) / Math.max(1, cell.turns - 1)).toFixed(1) + ' ' + (62 * (1 - value / 100)).toFixed(1);
    const draw = (points, kind) => points.length && inner.append(
      svg('path', {class: kind, 'vector-effect': 'non-scaling-stroke', d: 'M' + points.map(at).join('L')}));
    for (const y of [0.5, 31, 61.5]) inner.append(svg('path', {class: 'grid', 'vector-effect': 'non-scaling-stroke', d: 'M0 ' + y + 'H1000'}));
    draw(cell.line, 'calm');
    for (const [from, to] of cell.spans) draw(cell.line.filter(([turn]) => from <= turn && turn <= to), 'hot');
    plot.append(inner);
    return plot;
  }

  function map() {
    const data = document.getElementById('data'), panel = document.querySelector('.chosen');
    const links = [...document.querySelectorAll('a.cell')];
    if (!data || !panel || !links.length) return;
    const cells = JSON.parse(data.textContent);
    const keys = panel.querySelector('.hint');
    let chosen = null;

    const show = (cell) => {
      panel.replaceChildren(make('p', 'where', cell.name.join(' · ')), make('p', 'key-name', cell.key),
        make('span', 'chip s-' + cell.status, cell.status));
      const facts = make('dl', 'facts');
      for (const [name, value] of cell.facts) {
        const row = make('div');
        row.append(make('dt', '', name), make('dd', '', value));
        facts.append(row);
      }
      panel.append(facts);
      if (cell.why) panel.append(make('p', 'why', cell.why));
      if (cell.line.length) panel.append(make('p', 'small', 'similarity over turns'), line(cell));
      if (cell.labels.length) panel.append(make('p', 'small', 'repeats: ' + cell.labels.join(' / ')));
      if (cell.href) {
        const open = make('a', 'open', 'Open the conversation');
        open.href = cell.href;
        const last = make('p');
        last.append(open);
        panel.append(last);
      }
      panel.append(keys);
    };
    const choose = (link) => {
      if (chosen) { chosen.classList.remove('is-chosen'); chosen.tabIndex = -1; chosen.removeAttribute('aria-current'); }
      chosen = link;
      link.classList.add('is-chosen');
      link.tabIndex = 0;
      link.setAttribute('aria-current', 'true');
      show(cells[link.dataset.n]);
    };
    const neighbour = (link, key) => {
      if (key === 'ArrowLeft' || key === 'ArrowRight') return links[links.indexOf(link) + (key === 'ArrowRight' ? 1 : -1)];
      if (key === 'Home') return links[0];
      if (key === 'End') return links[links.length - 1];
      const from = link.getBoundingClientRect(), down = key === 'ArrowDown';
      let best = null, least = Infinity;
      for (const other of links) {
        const to = other.getBoundingClientRect();
        const along = down ? to.top - from.bottom : from.top - to.bottom;
        if (along < -1) continue;
        const far = along * 20 + Math.abs(to.left - from.left);
        if (far < least) { best = other; least = far; }
      }
      return best;
    };
    for (const link of links) {
      link.tabIndex = -1;
      link.addEventListener('focus', () => { if (chosen !== link) choose(link); });
      link.addEventListener('click', (event) => {
        const cell = cells[link.dataset.n];
        if (event.detail === 0 && cell.href) return; // Enter opens it
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        choose(link);
        link.focus({preventScroll: true});
      });
      link.addEventListener('dblclick', () => { if (cells[link.dataset.n].href) location.href = link.href; });
      link.addEventListener('keydown', (event) => {
        if (!['ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown', 'Home', 'End'].includes(event.key)) return;
        const next = neighbour(link, event.key);
        event.preventDefault();
        if (next) next.focus();
      });
    }
    const named = () => {
      const match = /[#&]cell=([^&]*)/.exec(location.hash);
      const n = match ? cells.findIndex((cell) => cell.key === decodeURIComponent(match[1])) : -1;
      const link = links.find((each) => Number(each.dataset.n) === n);
      if (link) choose(link);
      return Boolean(link);
    };
    window.addEventListener('hashchange', named);
    if (!named()) {
      links[0].tabIndex = 0;
      const full = links.find((link) => cells[link.dataset.n].line.length);
      if (full) choose(full);
    }
  }

  // -- the table of all cells: sorted by a column, filtered by a word

  function table() {
    const rows = document.querySelector('table.sortable tbody');
    if (!rows) return;
    const value = (row, n) => {
      const text = row.cells[n].textContent.trim();
      const number = Number(text.replace(/[\u202f ]/g, '').replace('−', '-').replace(/^[<>]/, '').replace('%', ''));
      return text === '–' || text === '' ? null : Number.isNaN(number) ? text : number;
    };
    document.querySelectorAll('table.sortable thead th').forEach((head, n) => {
      const button = make('button', '', head.textContent);
      button.type = 'button';
      head.replaceChildren(button);
      button.addEventListener('click', () => {
        const up = head.getAttribute('aria-sort') !== 'ascending';
        head.parentNode.querySelectorAll('th').forEach((other) => other.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
        const sorted = [...rows.rows].map((row) => [value(row, n), row]);
        const order = new Intl.Collator('en', {numeric: true}).compare;
        sorted.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const by = typeof a === 'number' && typeof b === 'number' ? a - b : order(a, b);
          return up ? by : -by;
        });
        rows.append(...sorted.map(([, row]) => row));
      });
    });
    const filter = document.querySelector('.filter');
    const [input, output] = [filter.querySelector('input'), filter.querySelector('output')];
    filter.hidden = false;
    input.addEventListener('input', () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let n = 0;
      for (const row of rows.rows) {
        const text = (row.cells[0].textContent + ' ' + row.cells[1].textContent).toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        n += !row.hidden;
      }
      output.textContent = words.length ? n + ' of ' + rows.rows.length : '';
    });
  }

  // -- a conversation: what is folded opens for whoever is led there; j and k go from turn to turn

  function conversation() {
    const turns = [...document.querySelectorAll('article.turn')];
    if (!turns.length) return;
    document.querySelector('.tools-row').hidden = false;
    const reveal = () => {
      const target = /^#[ts]\d+$/.test(location.hash) && document.querySelector(location.hash);
      for (let at = target; at; at = at.parentElement) if (at.tagName === 'DETAILS') at.open = true;
      if (target) target.scrollIntoView();
    };
    window.addEventListener('hashchange', reveal);
    reveal();
    for (const button of document.querySelectorAll('button[data-all]')) {
      const folded = [...document.querySelectorAll('details.' + button.dataset.all)];
      button.hidden = !folded.length;
      button.addEventListener('click', () => {
        const open = !folded.every((each) => each.open);
        folded.forEach((each) => { each.open = open; });
        button.textContent = button.textContent.replace(/^\w+/, open ? 'Fold' : 'Unfold');
      });
    }
    document.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
      if (event.key !== 'j' && event.key !== 'k') return;
      const top = document.querySelector('nav.time').getBoundingClientRect().bottom + 24;
      const seen = turns.filter((turn) => turn.offsetParent !== null);
      let at = seen.findIndex((turn) => turn.getBoundingClientRect().bottom > top);
      if (at < 0) at = seen.length - 1;
      const next = seen[Math.min(seen.length - 1, Math.max(0, at + (event.key === 'j' ? 1 : -1)))];
      if (next) { next.scrollIntoView(); next.querySelector('a.no').focus({preventScroll: true}); }
    });
    const bars = new Map();
    for (const link of document.querySelectorAll('.timeline a')) {
      const match = /^#t(\d+)$/.exec(link.getAttribute('href'));
      if (match && link.querySelector('.bar')) bars.set(Number(match[1]), link);
    }
    const starts = [...bars.keys()].sort((a, b) => a - b);
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const number = Number(entry.target.id.slice(1));
        const start = starts.filter((each) => each <= number).pop();
        if (bars.has(start)) bars.get(start).classList.toggle('is-seen', entry.isIntersecting);
      }
    });
    turns.forEach((turn) => watch.observe(turn));
  }

  document.addEventListener('DOMContentLoaded', () => {
    themeButton();
    map();
    table();
    conversation();
  });
})();
