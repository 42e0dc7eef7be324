// A GraphQL server, subprotocol graphql-transport-ws. It prints its port; each line on standard input is JSON:
// {publish: [channel, post]}, {end: channel} or {drop: true}.
import { createInterface } from "node:readline";
import { GraphQLError, GraphQLID, GraphQLInt, GraphQLNonNull, GraphQLObjectType, GraphQLSchema, GraphQLString } from "graphql";
import { useServer } from "graphql-ws/use/ws";
import { WebSocketServer } from "ws";

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const listeners = new Map();
const Post = new GraphQLObjectType({ name: "Post", fields: { id: { type: GraphQLInt }, title: { type: GraphQLString } } });

function posts(channel, after) {
  say({ subscribe: channel, after: after ?? null });
  const queue = [];
  let wake;
  const listener = (item) => (queue.push(item), wake?.());
  listeners.set(channel, listener);
  const done = { value: undefined, done: true };
  let over = false;
  return {
    [Symbol.asyncIterator]() {
      return this;
    },
    async next() {
      while (!queue.length && !over) await new Promise((resolve) => (wake = resolve));
      const item = over ? null : queue.shift();
      return item === null ? done : { value: { postAdded: item }, done: false };
    },
    async return() {
      over = true;
      wake?.();
      say({ complete: channel });
      return done;
    },
  };
}

const schema = new GraphQLSchema({
  query: new GraphQLObjectType({ name: "Query", fields: { hello: { type: GraphQLString } } }),
  subscription: new GraphQLObjectType({
    name: "Subscription",
    fields: {
      postAdded: {
        type: Post,
        args: { channel: { type: new GraphQLNonNull(GraphQLID) }, after: { type: GraphQLID } },
        subscribe: (_, { channel, after }) => {
          if (channel === "secret") throw new GraphQLError("not for you");
          return posts(channel, after);
        },
      },
    },
  }),
});
const server = new WebSocketServer({ port: +(process.argv[2] ?? 0), host: "127.0.0.1", path: "/graphql" });
useServer({ schema, onConnect: ({ connectionParams }) => connectionParams?.token === "secret" }, server, 300);
createInterface({ input: process.stdin }).on("line", (line) => {
  const command = JSON.parse(line);
  if (command.publish) listeners.get(command.publish[0])?.(command.publish[1]);
  else if (command.end) listeners.get(command.end)?.(null);
  else if (command.drop) for (const client of server.clients) client.terminate();
});
server.on("listening", () => say({ port: server.address().port }));
