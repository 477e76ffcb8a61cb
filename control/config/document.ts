/**
 * YAML text to a plain value that remembers where each part stood.
 *
 * The tree is walked here and not by yaml's `toJS`, for three reasons met with hostile files: its search for
 * duplicate keys is quadratic in the keys of a mapping, expanding aliases is exponential, and deep nesting makes the
 * composer recurse until V8 aborts the process (a RegExp compiled at the end of the stack), which no `catch` sees.
 */
import {
  Composer,
  type CST,
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  type ParsedNode,
  Parser,
  type YAMLMap,
} from 'yaml';
import { quote } from '../addresses.js';
import { Findings, type Path, type Position } from './problems.js';
import { isGuarded, mayCarry } from './secrecy.js';

/** Open collections at once. A node's file needs 4; broken lines can open one each, so leave room to name them. */
const DEEPEST = 200;
/** Values that aliases may add to a file. */
const MOST_ALIASED = 10_000;
/** Syntax errors cascade: the first few tell. */
const MOST_SYNTAX_ERRORS = 10;

type Node = ParsedNode | null;
type Mapping = Record<string, unknown>;

/** The value of a file; `undefined`, with findings, when it cannot be read as one document. */
export interface SourceDocument {
  readonly value: unknown;
  readonly findings: Findings;
}

/** A mapping made by `readDocument`: no prototype, so that a key such as `__proto__` is a key like any other. */
export function isMapping(value: unknown): value is Mapping {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

class TooDeep extends Error {
  constructor(readonly offset: number) {
    super('too deep');
  }
}

function* shallowTokens(text: string, parser: Parser): Generator<CST.Token, void> {
  for (const lexeme of new Lexer().lex(text)) {
    yield* parser.next(lexeme);
    if (parser.stack.length > DEEPEST) throw new TooDeep(parser.offset);
  }
  yield* parser.end();
}

/**
 * What yaml says of a syntax error, by its code. Its own words only where they quote nothing of the file: a file that
 * cannot be read may hold a secret anywhere.
 */
const OWN_WORDS: ReadonlySet<string> = new Set([
  'ALIAS_PROPS',
  'BAD_ALIAS',
  'BAD_INDENT',
  'BLOCK_AS_IMPLICIT_KEY',
  'BLOCK_IN_FLOW',
  'KEY_OVER_1024_CHARS',
  'MISSING_CHAR',
  'MULTILINE_IMPLICIT_KEY',
  'MULTIPLE_ANCHORS',
  'MULTIPLE_TAGS',
  'TAB_AS_INDENT',
]);
const SYNTAX_MESSAGES: Readonly<Record<string, string>> = {
  BAD_DIRECTIVE: 'a line that begins with "%" and is no directive',
  BAD_DQ_ESCAPE: 'an escape sequence that double quotes do not have',
  BAD_SCALAR_START: 'plain text cannot begin with this character',
  TAG_RESOLVE_FAILED: 'a tag',
  UNEXPECTED_TOKEN: 'unexpected text or punctuation',
};

/** Remedies for the syntax errors people make; by yaml's error code. */
const SYNTAX_REMEDIES: Readonly<Record<string, string>> = {
  TAB_AS_INDENT: 'indent with spaces',
  MISSING_CHAR: 'add the missing character',
  BAD_INDENT: 'close every bracket, and indent the keys of one mapping to the same column',
  BLOCK_AS_IMPLICIT_KEY: 'put the value on its own line, or in quotes when it holds ":"',
  BAD_ALIAS: 'quote text that begins with "*" or "&"',
  BAD_DQ_ESCAPE: 'write \\\\ for a backslash, or use single quotes',
  TAG_RESOLVE_FAILED: 'remove the tag: a node file has none; quote text that begins with "!"',
  RESOURCE_EXHAUSTION: 'a node file needs four levels',
};

/**
 * Offsets to lines and columns, from 1, in UTF-16 units. Not yaml's LineCounter: it misses the line ends inside text
 * that is no YAML, and then points outside the file.
 */
function positions(text: string): (offset: number) => Position {
  const starts = [0];
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) starts.push(at + 1);
  return (offset) => {
    const within = Math.min(offset, text.length);
    let low = 0;
    let high = starts.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (starts[middle] <= within) low = middle;
      else high = middle;
    }
    return { line: low + 1, column: within - starts[low] + 1 };
  };
}

/** Reads one YAML 1.2 document. Never throws. */
export function readDocument(text: string, file: string): SourceDocument {
  const position = positions(text);
  const reader = new Reader(position);
  const findings = new Findings(file, (path, at) => reader.locate(path, at), isGuarded(text));
  reader.findings = findings;
  const fail = (offset: number, message: string, remedy: string) =>
    findings.addAt(position(offset), [], message, remedy);

  let document: Document.Parsed | undefined;
  try {
    const composer = new Composer({ prettyErrors: false, uniqueKeys: false });
    for (const next of composer.compose(shallowTokens(text, new Parser()), true, text.length)) {
      if (document !== undefined) {
        fail(next.range[0], 'the file holds more than one YAML document', 'keep one; remove the "---" line');
        return { value: undefined, findings };
      }
      document = next as Document.Parsed;
    }
  } catch (error) {
    if (!(error instanceof TooDeep)) throw error;
    fail(error.offset, `YAML nested more than ${DEEPEST} levels deep`, 'a node file needs four levels');
    return { value: undefined, findings };
  }
  if (document === undefined) return { value: undefined, findings };

  for (const error of [...document.errors, ...document.warnings].slice(0, MOST_SYNTAX_ERRORS)) {
    const remedy =
      SYNTAX_REMEDIES[error.code] ?? 'mend the YAML there (quote values with special characters)';
    const words = OWN_WORDS.has(error.code)
      ? error.message
      : (SYNTAX_MESSAGES[error.code] ?? 'not well formed');
    fail(error.pos[0], `YAML: ${words}`, remedy);
  }
  if (document.directives?.yaml.explicit && document.directives.yaml.version !== '1.2') {
    fail(
      Math.max(0, text.indexOf('%YAML')),
      'the file asks for YAML 1.1, which reads some MACs and words as numbers and truth values',
      'remove the %YAML line',
    );
  }
  if (findings.problems.length > 0) return { value: undefined, findings };
  const value = reader.read(document.contents as Node);
  return { value: reader.broken ? undefined : value, findings };
}

/** Walks the tree of one document into plain values, and finds its way back from a path. */
class Reader {
  findings!: Findings;
  private root: Node = null;
  private readonly anchors = new Map<string, { node: ParsedNode; path: Path }>();
  private readonly targets = new Map<Node, Node>();
  private readonly indices = new Map<YAMLMap.Parsed, Map<string, { key: ParsedNode; value: Node }>>();
  private readonly open = new Set<Node>();
  private insideAlias = 0;
  private aliased = 0;
  /** Set when an alias could not be followed: the value has holes that would be reported again as missing. */
  broken = false;

  constructor(private readonly position: (offset: number) => Position) {}

  read(root: Node): unknown {
    this.root = root;
    return this.value(root, []);
  }

  private value(node: Node, path: Path): unknown {
    if (node === null) return null;
    if (this.insideAlias > 0 && ++this.aliased > MOST_ALIASED) {
      this.broken = true;
      if (this.aliased === MOST_ALIASED + 1) {
        this.findings.add(
          path,
          `YAML aliases add more than ${MOST_ALIASED} values`,
          'write the values out, or use fewer aliases',
        );
      }
      return null;
    }
    if (isAlias(node)) return this.alias(node, path);
    if (node.anchor !== undefined) this.anchors.set(node.anchor, { node, path });
    if (isScalar(node)) return node.value;
    this.open.add(node);
    const value = isSeq(node)
      ? node.items.map((item, index) => this.value(item as Node, [...path, index]))
      : this.mapping(node as YAMLMap.Parsed, path);
    this.open.delete(node);
    return value;
  }

  private alias(node: ParsedNode & { source: string }, path: Path): unknown {
    const anchor = this.anchors.get(node.source);
    const why =
      anchor === undefined
        ? 'names no anchor before it'
        : this.open.has(anchor.node)
          ? 'stands inside the value it names'
          : mayCarry(anchor.path, path)
            ? undefined
            : 'shares a value with a place that holds secrets';
    if (anchor === undefined || why !== undefined) {
      this.findings.add(path, `this YAML alias ${why}`, 'write the value out');
      this.broken = true;
      return null;
    }
    this.targets.set(node, anchor.node);
    this.insideAlias++;
    const value = this.value(anchor.node, path);
    this.insideAlias--;
    return value;
  }

  private mapping(node: YAMLMap.Parsed, path: Path): Mapping {
    const result: Mapping = Object.create(null) as Mapping;
    // An alias walks a mapping again: report its keys once.
    const seen = this.indices.has(node);
    const index = new Map<string, { key: ParsedNode; value: Node }>();
    this.indices.set(node, index);
    for (const { key, value } of node.items) {
      if (!isScalar(key)) {
        if (!seen) this.findings.add(path, 'a key of this mapping is not plain text', 'write keys as words');
        continue;
      }
      const name = String(key.value);
      const first = index.get(name);
      if (first !== undefined) {
        if (!seen) this.duplicate([...path, name], key, first.key);
        continue;
      }
      index.set(name, { key, value });
      result[name] = this.value(value, [...path, name]);
    }
    return result;
  }

  private duplicate(path: Path, key: ParsedNode, first: ParsedNode): void {
    const { line } = this.position(first.range[0]);
    const name = String(path.at(-1));
    const shown = this.findings.shows(name) ? `key ${quote(name)}` : 'this key';
    this.findings.addAt(
      this.position(key.range[0]),
      path,
      `${shown} is written twice, first on line ${line}`,
      'keep one',
    );
  }

  private resolved(node: Node): Node {
    let target = node;
    while (target !== null && this.targets.has(target)) target = this.targets.get(target)!;
    return target;
  }

  private child(node: Node, step: string | number): { key: Node; value: Node } | undefined {
    const collection = this.resolved(node);
    if (isSeq(collection) && typeof step === 'number') {
      const value = (collection.items[step] ?? null) as Node;
      return value === null ? undefined : { key: value, value };
    }
    if (isMap(collection)) return this.indices.get(collection as YAMLMap.Parsed)?.get(String(step));
    return undefined;
  }

  /**
   * Where a path stands: the deepest part of it that is written. What came through an alias stands at the alias, since
   * that is the use that is wrong; an empty value stands at its key.
   */
  locate(path: Path, at: 'key' | 'value'): Position {
    let node = this.root;
    let place: Node = node;
    let throughAlias = isAlias(node);
    for (const [depth, step] of path.entries()) {
      const found = this.child(node, step);
      if (found === undefined) break;
      const last = depth === path.length - 1;
      node = found.value;
      const empty = node === null || (isScalar(node) && node.value === null && node.source === '');
      if (!throughAlias) place = (last && at === 'key') || empty ? found.key : node;
      throughAlias ||= isAlias(node);
    }
    return this.position(place?.range[0] ?? 0);
  }
}
