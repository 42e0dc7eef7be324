// A Socket.IO server: rooms are joined by `join` (with the id to go on after) and left by `leave`.
// It prints its port; each line on standard input is JSON: {emit: [room, event, ...arguments]}, {ack: [event, argument]} or {drop: true}.
import { createInterface } from "node:readline";
import { createServer } from "node:http";
import { Server } from "socket.io";

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const http = createServer();
const io = new Server(http, { pingInterval: 300, pingTimeout: 2000, transports: ["websocket"] });
const chat = io.of("/chat");
chat.use((socket, next) => next(socket.handshake.auth.token === "secret" ? undefined : new Error("who are you?")));
chat.on("connection", (socket) => {
  say({ connected: true });
  socket.on("join", (room, after) => (socket.join(room), say({ join: room, after: after ?? null })));
  socket.on("leave", (room) => (socket.leave(room), say({ leave: room })));
  socket.conn.on("packet", (packet) => packet.type === "pong" && say({ pong: true }));
});
createInterface({ input: process.stdin }).on("line", (line) => {
  const command = JSON.parse(line);
  if (command.emit) {
    const [room, event, ...rest] = command.emit;
    chat.to(room).emit(event, ...rest);
  } else if (command.ack) {
    chat.timeout(5000).emit(...command.ack, (error, answers) => say({ acknowledged: !error, answers }));
  } else if (command.binary) {
    chat.emit("binary", Buffer.from("bytes"));
  } else if (command.drop) {
    for (const socket of chat.sockets.values()) socket.conn.close();
  } else if (command.kick) {
    for (const socket of chat.sockets.values()) socket.disconnect();
  }
});
http.listen(+(process.argv[2] ?? 0), "127.0.0.1", () => say({ port: http.address().port }));
