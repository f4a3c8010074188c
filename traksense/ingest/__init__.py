"""The pipeline, in pure Trio: from the first byte of a PUBLISH to its PUBACK.

    reader (mqtt/) ──▶ Intake ──▶ [messages] ──▶ Batcher ──▶ [batches] ──▶ Writer × N ──▶ Store (store/)
       ▲              received,    bounded        decodes,    no buffer:    retries,         COPY, COMMIT
       │              counted      memory         move_on_    a batch waits bisects             │
       │                           channel        after       for a writer                      │
       └──── PUBACK, in receive order ◀──────────────── Acknowledger ◀──── settled ◀────────────┘

The Ledger beside it counts what comes in and how it ends: received = stored + duplicate + dead + in flight.

Backpressure runs against the arrows. A slow database leaves batches unfinished, so the batcher does not take messages,
so the bounded channel fills, so the intake waits, so the reader does not read its socket; and since nothing is
acknowledged before its COMMIT, the broker reaches Receive Maximum and keeps the rest in the session.

Layers: a module here may import those above it in this list, `model`, `errors`, `adapters`, and nothing of `mqtt`,
`store`, `web` or `tools` (a linter holds that).

    ports         what the pipeline needs of a broker and of a store
    ledger        the counts, and how many bytes are held
    ack           which PUBACKs may go out
    intake        the upstream end
    decode        bytes to items, or a rejection
    batch         when to flush (pure policy), and the task that does it
    write         retries, bisection, outcomes
    health        what must hold for the service to be ready
    session       notices that the broker has forgotten us
"""
