/** A name of a request that nothing here has. */
export class UnknownName extends Error {}
