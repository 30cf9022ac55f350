// Hears notifications with node-postgres: see tests/server/drivers.rs for what it prints when.
//
// Usage: node hear_node_postgres.mjs SOCKET_FOLDER
import readline from 'node:readline'
import pg from 'pg'

const say = (...words) => console.log(words.join(' '))

const client = new pg.Client({ host: process.argv[2], user: 'postgres', database: 'postgres' })
await client.connect()

// A call of next() that waits gets the next one. One for which no call waits is kept.
const kept = []
let waiting
client.on('notification', (heard) => (waiting ? waiting(heard) : kept.push(heard)))
const next = async () => {
  const heard = kept.shift() ?? (await new Promise((resolve) => { waiting = resolve }))
  waiting = undefined
  return heard
}

const channels = await client.query("SELECT oban_listen_channels('{insert}') AS name")
say('listening', ...channels.rows.map((row) => row.name))

let heard = await next()
say('idle', heard.channel, heard.payload)

await client.query('BEGIN')
const one = await client.query('SELECT 1 AS one')
say('in transaction', one.rows[0].one)
const input = readline.createInterface({ input: process.stdin })
await new Promise((resolve) => input.once('line', resolve)) // meanwhile another session notifies
input.close()
await client.query('SELECT 1')
say('in transaction', kept.length === 0 ? 'nothing' : 'too early')
await client.query('COMMIT')
heard = await next()
say('after', heard.channel, heard.payload)
await client.end()
