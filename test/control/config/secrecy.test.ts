/** No problem of a file shows its secrets, however the file is wrong. */
import { inspect } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { ConfigError, parseConfig } from '../../../control/config.js';

/** Digits that appear in nothing that Weft says. Looked for in pieces too: half a secret is one. */
const SECRET = 'c0ffee5ec2e7d1ce'.repeat(4);
const KEY = `f00dfacecafe9a7b${SECRET.slice(16)}`.slice(0, 40);
const PIECES = ['c0ffee', '5ec2e7', 'd1ce', 'f00dface', 'cafe9a7b'];
/** Secrets that are no hex, as people write passwords. */
const WORD = 'Xyzzy-Plugh!';
const CANARY = [...PIECES, 'xyzzy', 'plugh'];

const FILE = `node: hostA
underlay: { address: 192.168.50.1, mtu: 1500 }
networks:
  - name: blue
    vni: 42
    subnet: 10.0.9.0/24
    encrypted: true
    peers: [192.168.50.2, 192.168.50.3]
endpoints:
  - { name: c1, network: blue, netns: cA, interface: eth0, address: 10.0.9.1/24 }
encryption:
  keys:
    - { id: 1, secret: "${SECRET}" }
    - id: 2
      secret: "${[...SECRET].reverse().join('')}"
  encapsulation: esp
  rotate: { after: 12h }
security_associations:
  - { peer: 192.168.50.2, direction: out, spi: 0x1001, algorithm: aes-128-gcm-16, key: "${KEY}" }
  - peer: 192.168.50.2
    direction: in
    spi: 0x1002
    algorithm: aes-128-gcm-16
    key: "${KEY.slice(2)}ff"
`;

/** What a file is told to be wrong, in every form that a caller may print; empty when it is sound. */
function everything(text: string): string {
  try {
    const config = parseConfig(text, 'f');
    return `${JSON.stringify(config)} ${inspect(config, { depth: 9, showHidden: true })}`;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return `${error.stack} ${JSON.stringify(error)} ${inspect(error, { depth: 9 })} ${JSON.stringify(error.problems)}`;
  }
}

/** @param canary words that must not be told, in lower case. */
function tellsNothing(t: ExecutionContext, text: string, canary: readonly string[] = CANARY): string {
  const told = everything(text);
  const lower = told.toLowerCase();
  for (const word of canary) if (lower.includes(word)) t.fail(`${word} of\n${text}\nis told: ${told}`);
  t.pass();
  return told;
}

test('the file itself is sound, and its config shows no secret', (t) => {
  t.is(parseConfig(FILE, 'f').encryption!.keys.length, 2);
  t.true(tellsNothing(t, FILE, [...CANARY, 'eeff0c', '7e2ce5']).includes('[secret]'));
});

// biome-ignore format: one value a line reads best.
const VALUES: readonly string[] = [
  // What somebody might write behind `secret:` or `key:`, or in place of a whole entry.
  WORD, `"${WORD}"`, `'${WORD}'`, SECRET, `"${SECRET}"`, SECRET.slice(1), `"${SECRET} "`, `0x${SECRET}`, `"0x${SECRET}"`,
  `!${WORD}`, `!!${WORD} x`, `!<${WORD}> x`, `&${WORD} x`, `*${WORD}`, `*${SECRET}`, `@${WORD}`, `\`${WORD}`, `%${WORD}`,
  `{ ${WORD}: 1 }`, `{ ${WORD}: 1, ${WORD}: 2 }`, `{ "${SECRET}": "${SECRET}" }`, `{ ? [${WORD}] : 1 }`, `{ ${WORD} }`,
  `{ ${WORD}: { a: 1, a: 2 } }`, `{ ${WORD}: *none }`, `[${WORD}]`, `[[${SECRET}]]`, `[${WORD}: 1]`, `[&${WORD} a, *${WORD}]`,
  `"${WORD}\\q"`, `"\\x${WORD}"`, `"${WORD}`, `'${WORD}`, `[${WORD}`, `{${WORD}`, `${WORD}: ${WORD}`, `- ${WORD}`, `${WORD}]`, `"${WORD}" ${WORD}`,
  `|\n        ${WORD}\n`, `|${WORD}\n        x\n`, `>-9\n ${WORD}\n`, `\n${WORD}\n`, `\n${WORD}:\n`, `\n\t${WORD}\n`, `# ${WORD}`, `\n--- ${WORD}\n`, `\n...\n${WORD}\n`, `\n%${WORD}\n---\n`,
  `\u0000${WORD}`, `${WORD}\r${WORD}`, `"${WORD}" #${WORD}`, `<<: ${WORD}`, `{ <<: { ${WORD}: 1 } }`, `? ${WORD}`, `{ __proto__: ${WORD} }`, `, ${WORD}`, `${'['.repeat(250)}${WORD}`,
];

/** Each place of the file that a value may take: of a secret, of what holds it, of what stands beside it. */
const PLACES: readonly RegExp[] = [
  /"c0ff[^"]*"/,
  /"ec1d[^"]*"/,
  /"f00d[^"]*"/,
  /"0dfa[^"]*"/,
  /\{ id: 1.*\}/,
  /id: 2\n.*/,
  /\{ peer: .*\}/,
  /(?<=id: )1/,
  /(?<=encapsulation: )esp/,
  /(?<=after: )12h/,
  /\{ after: 12h \}/,
  /(?<=peer: )192.168.50.2/,
  /(?<=direction: )out/,
  /(?<=spi: )0x1001/,
  /(?<=spi: 0x1002\n {4}algorithm: )\S+/,
  /(?<= {2}keys:)\n[\s\S]*(?= {2}encapsulation)/,
  /(?<=encryption:)\n[\s\S]*(?=security)/,
  /(?<=security_associations:)\n[\s\S]*$/,
  /(?<= {2})encapsulation(?=:)/,
  /(?<=\{ )id(?=: 1)/,
  /secret(?=: "c0)/,
  /secret(?=: "ec)/,
  /(?<= {4})direction(?=: in)/,
];

for (const place of PLACES) {
  test(`nothing of a wrong value is told: in place of ${place.source}`, (t) => {
    t.regex(FILE, place);
    // Behind a blank one more changes nothing.
    const spaces = FILE[FILE.search(place) - 1] === ' ' ? [''] : ['', ' '];
    for (const value of VALUES) {
      for (const space of spaces) {
        // Those that stand in the file as they are must not be told either, whatever else is wrong.
        tellsNothing(
          t,
          FILE.replace(place, () => space + value),
        );
      }
    }
  });
}

test('what is told instead: kind and length', (t) => {
  const told = (value: string) => everything(FILE.replace(`"${SECRET}"`, value)).split('\n')[0];
  t.regex(told(`"${SECRET.slice(1)}"`), /f:13:24: secret has 63 hex digits, not 64; write 64 hex digits/);
  t.regex(told(`"${WORD}"`), /secret has 12 characters that are not all hex digits; write 64/);
  t.regex(told('0123'), /secret has no quotes, and YAML reads it as a number; write 64 hex digits in quotes/);
  t.regex(told('true'), /secret is true, not text; write 64 hex digits in quotes/);
  t.regex(told('null'), /secret is empty, not text; write 64 hex digits in quotes/);
  t.regex(told('{ a: 1 }'), /secret is a mapping, not text; write 64/);
  t.regex(told(`!${WORD} x`), /f:13:24: YAML: a tag; remove the tag/);
});

test('a secret goes through no alias to where it would be shown', (t) => {
  const anchored = FILE.replace(`"${SECRET}"`, `&s "${SECRET}"`);
  const uses = [
    anchored.replace('esp', '*s'),
    anchored.replace('0x1001', '*s'),
    anchored.replace('192.168.50.2, direction', '*s , direction'),
    `${anchored}extra: *s\n`,
    // The networks come behind.
    `${anchored.replace('networks:', 'before:')}networks: [{ name: *s , vni: 1, subnet: *s , peers: [*s ] }]\n`,
    `${anchored.replace('networks:', 'before:')}networks: *s\n`,
    FILE.replace('name: blue', `name: &s ${SECRET.slice(2)}`).replace(`"${SECRET}"`, '*s'),
    FILE.replace('node: hostA', `node: &s "${WORD}"`).replace(`"${KEY}"`, '*s'),
    `${FILE.replace('id: 2', `&e ${WORD}: 2`)}workers: *e\n`,
    `workers: *e\n${FILE.replace('encryption:', 'encryption: &e')}workers: *e\n`,
  ];
  for (const text of uses) tellsNothing(t, text);
  t.regex(
    everything(uses[0]),
    /f:16:18: this YAML alias shares a value with a place that holds secrets; write the/,
  );
  t.regex(everything(uses[6]), /f:13:24: this YAML alias shares a value/);
  // What is no secret may be shared, and a secret among its like.
  const peers = FILE.replace('[192.168.50.2,', '[&p 192.168.50.2,').replace(
    '- peer: 192.168.50.2',
    '- peer: *p',
  );
  t.is(parseConfig(peers, 'f').associations[1].peer, '192.168.50.2');
  const entry = FILE.replace('{ id: 1', '&k { id: 1').replace(/- id: 2\n.*/, '- *k');
  t.regex(tellsNothing(t, entry), /this secret is used twice/);
});

test('a file that is a key, and keys at the top of the file', (t) => {
  for (const value of VALUES) {
    for (const text of [
      value,
      `secret: ${value}\n`,
      `${FILE}key: ${value}\n`,
      `keys: [{ secret: ${value} }]\n`,
    ]) {
      // At the top of a file a mapping's keys are words like any other.
      if (text === value && /[:?{]/.test(value)) continue;
      tellsNothing(t, text);
    }
  }
});

test('property: a file cut, doubled and overwritten tells nothing of its secrets', (t) => {
  const secret = (piece: string) => CANARY.some((word) => piece.includes(word.slice(0, 2)));
  const pieces = [
    ...'{}[]:,-?!&*#|>%@"\'\n \t~\\',
    '\n  ',
    '\n- ',
    ': ',
    '---\n',
    '&s ',
    '*s',
    '!!int ',
    '<<',
    'null',
    '0x',
  ];
  const cut = fc.record({
    at: fc.nat(FILE.length),
    length: fc.nat(12),
    put: fc.oneof(fc.constantFrom(...pieces, ''), fc.nat(FILE.length - 20)),
  });
  fc.assert(
    fc.property(fc.array(cut, { minLength: 1, maxLength: 4 }), (cuts) => {
      let text = FILE;
      for (const { at, length, put } of cuts) {
        const piece = typeof put === 'number' ? FILE.slice(put, put + 20) : put;
        // A secret written twice, where none belongs, is shown like what belongs there.
        if (secret(piece)) continue;
        text = text.slice(0, at) + piece + text.slice(at + length);
      }
      tellsNothing(t, text);
    }),
    { numRuns: 1500 },
  );
});
