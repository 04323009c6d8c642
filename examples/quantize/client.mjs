// usage: node client.mjs PACKAGES MODEL.gguf BYTE
//
// What node-llama-cpp, out of the directory of npm packages PACKAGES, writes
// after BYTE, the likeliest byte each time. The model's tokens are bytes after
// three special ones.
import path from "node:path";

const [packages, modelPath, first] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(path.join(packages, "node-llama-cpp/dist/index.js"));
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, maxThreads: 1, logLevel: LlamaLogLevel.error});
try {
    const model = await llama.loadModel({modelPath, gpuLayers: 0});
    const context = await model.createContext({contextSize: 64, threads: 1});
    const bytes = [...Buffer.from(first)];
    for await (const token of context.getSequence().evaluate(bytes.map((b) => b + 3), {temperature: 0}))
        if (bytes.push(token - 3) === 24)
            break;
    console.log(JSON.stringify(Buffer.from(bytes).toString("latin1")));
} catch (err) {
    console.log(String(err));
    process.exitCode = 1;
}
await llama.dispose();
