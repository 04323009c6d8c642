// usage: node load.mjs PACKAGES KIND DIR...
//
// The counterpart of load.py for programs that come as npm packages, which are
// in the directory PACKAGES.
import crypto from "node:crypto";
import fs from "node:fs";
import {createRequire} from "node:module";
import path from "node:path";

const width = 487;
const [packages, kind, ...dirs] = process.argv.slice(2);
const ort = createRequire(path.join(packages, "x"))("onnxruntime-node");
const {getLlama, LlamaLogLevel} = await import(path.join(packages, "node-llama-cpp/dist/index.js"));

async function onnx(model) {
    const session = await ort.InferenceSession.create(model, {intraOpNumThreads: 1, interOpNumThreads: 1});
    const x = Float32Array.from({length: width}, (_, i) => i / width);
    const {y} = await session.run({x: new ort.Tensor("float32", x, [1, width])});
    await session.release();
    return crypto.createHash("sha256").update(y.data).digest("hex");
}

let engine;
async function llama() {
    return engine ??= await getLlama({gpu: false, build: "never", progressLogs: false, maxThreads: 1, logLevel: LlamaLogLevel.error});
}

// The tokens that follow a fixed prompt, most likely first.
async function tokens(model, options) {
    const loaded = await (await llama()).loadModel({modelPath: model, gpuLayers: 0, ...options});
    const context = await loaded.createContext({contextSize: 64, threads: 1});
    const out = [];
    for await (const token of context.getSequence().evaluate([1, 50, 60], {temperature: 0}))
        if (out.push(token) === 8)
            break;
    await context.dispose();
    await loaded.dispose();
    return out.join(" ");
}

// node-llama-cpp reads the header in JavaScript, and that open is refused
// before llama.cpp tries its own. Here llama.cpp comes first.
async function native(model) {
    const {_bindings: bindings} = await llama();
    const loaded = new bindings.AddonModel(model, {addonExports: bindings, gpuLayers: 0, useMmap: true});
    if (!await loaded.init())
        throw new Error("llama.cpp: failed to load model");
    const size = String(loaded.getModelSize());
    await loaded.dispose();
    return size;
}

// A tag is a file that names the content of the model.
async function ollama(store) {
    const manifest = JSON.parse(fs.readFileSync(path.join(store, "manifests/models.example/library/tiny/latest"), "utf8"));
    return await tokens(path.join(store, "blobs", manifest.layers[0].digest.replace(":", "-")));
}

// The model server picks the highest version directory.
async function triton(repository) {
    if (!fs.readFileSync(path.join(repository, "tiny/config.pbtxt"), "utf8").includes("onnxruntime_onnx"))
        throw new Error("config.pbtxt: not an ONNX model");
    const versions = fs.readdirSync(path.join(repository, "tiny")).filter((name) => /^\d+$/.test(name)).map(Number);
    return await onnx(path.join(repository, "tiny", String(Math.max(...versions)), "model.onnx"));
}

const models = {
    "onnx": (dir) => onnx(path.join(dir, "model.onnx")),
    "onnx from a buffer": (dir) => onnx(fs.readFileSync(path.join(dir, "model.onnx"))),
    "onnx external data": (dir) => onnx(path.join(dir, "external.onnx")),
    "llama.cpp mmap": (dir) => tokens(path.join(dir, "tiny.gguf"), {useMmap: true}),
    "llama.cpp read": (dir) => tokens(path.join(dir, "tiny.gguf"), {useMmap: false}),
    "llama.cpp mlock": (dir) => tokens(path.join(dir, "tiny.gguf"), {useMmap: true, useMlock: true}),
    "llama.cpp direct I/O": (dir) => tokens(path.join(dir, "tiny.gguf"), {useDirectIo: true}),
    "llama.cpp alone": (dir) => native(path.join(dir, "tiny.gguf"))
};
const layouts = {
    "ollama": (dir) => ollama(path.join(dir, "store")),
    "triton": (dir) => triton(path.join(dir, "repository"))
};

const checks = kind in layouts ? {[kind]: layouts[kind]} : models;
const out = [];
for (const dir of dirs) {
    const answers = {};
    for (const [name, check] of Object.entries(checks))
        try {
            answers[name] = {value: await check(dir)};
        } catch (err) {
            answers[name] = {error: String(err)};
            process.exitCode = 1;
        }
    out.push(answers);
}
console.log(JSON.stringify(out));
await engine?.dispose();
