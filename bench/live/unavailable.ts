/** Thrown by a contender that this machine cannot run: it is skipped with these words, and nothing has failed. */
export class Unavailable extends Error {}
