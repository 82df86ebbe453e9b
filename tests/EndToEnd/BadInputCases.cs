using System.Text;
using System.Text.Json.Nodes;
using Megatron.Compute.Checkpointing;
using static TorchSharp.torch;

namespace Megatron.EndToEnd.Tests;

/// <summary>A mistake of the user: what is broken in the workspace, the command, and what the one line on standard error must say.</summary>
/// <param name="Name">Title of the test.</param>
/// <param name="Code">Code of the error.</param>
/// <param name="Says">A part of its sentence.</param>
/// <param name="Break">Breaks the workspace.</param>
/// <param name="Words">The command line.</param>
internal sealed record BadInput(string Name, string Code, string Says, Action<Workspace> Break, Func<Workspace, string[]> Words);

/// <summary>The table of bad input: data, options, tokenizers and models, checkpoints, outputs.</summary>
internal static class BadInputCases
{
    private const string Good = """{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""";

    public static IReadOnlyList<BadInput> All { get; } = [.. Data(), .. Options(), .. Models(), .. Weights(), .. Checkpoints(), .. Outputs()];

    private static string[] Train(Workspace work, params string[] more) => work.Training("out", ["--train_iters", "2", .. more]);

    private static BadInput Row(string name, string code, string says, string row) => new($"data: {name}", code, says,
        work => File.WriteAllText(work.Rows, $"{Good}\n{row}\n"), work => Train(work, "--strict", "--global_batch_size", "1", "--micro_batch_size", "1"));

    private static BadInput DataFile(string name, string code, string says, byte[] bytes, string file = "other.jsonl") => new($"data: {name}", code, says,
        work => File.WriteAllBytes(work.Path(file), bytes), work => Train(work, "--dataset", work.Path(file)));

    private static BadInput Given(string code, string says, params string[] more) => new($"option: {string.Join(' ', more)}", code, says, _ => { }, work => Train(work, more));

    private static BadInput Model(string name, string code, string says, Action<Workspace> breakIt) => new($"model: {name}", code, says, breakIt, work => Train(work));

    private static IEnumerable<BadInput> Data()
    {
        yield return Row("malformed JSON", "DATA001", "rows.jsonl:2:", """{"messages":[}""");
        yield return Row("a list as a row", "DATA002", "the row is a list", "[1]");
        yield return Row("a number as a row", "DATA002", "a number", "7");
        yield return Row("no messages", "DATA003", "columns: foo", """{"foo":"bar"}""");
        yield return Row("content null", "DATA003", "messages[1] has no content", """{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":null}]}""");
        yield return Row("empty messages", "DATA004", "messages is an empty list", """{"messages":[]}""");
        yield return Row("unknown role", "DATA005", "narrator", """{"messages":[{"role":"narrator","content":"Q"},{"role":"assistant","content":"A"}]}""");
        yield return Row("two systems", "DATA005", "messages[1] is a system message",
            """{"messages":[{"role":"system","content":"S"},{"role":"system","content":"T"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""");
        yield return Row("no assistant", "DATA005", "no assistant message", """{"messages":[{"role":"user","content":"Q"}]}""");
        yield return Row("NUL escape", "DATA006", "\\u0000", """{"query":"Q\u0000","response":"A"}""");
        yield return Row("lone surrogate", "DATA006", "\\ud83d", """{"query":"Q\ud83d","response":"A"}""");
        yield return Row("key twice", "DATA001", ":2:", """{"query":"Q","query":"P","response":"A"}""");
        yield return DataFile("not UTF-8", "DATA006", "0xFF", [.. Encoding.UTF8.GetBytes("{\"query\":\"Q"), 0xFF, .. Encoding.UTF8.GetBytes("\",\"response\":\"A\"}\n")]);
        yield return DataFile("empty file", "DATA008", "other.jsonl", []);
        yield return DataFile("only blank lines", "DATA008", "other.jsonl", "\n  \n\n"u8.ToArray());
        yield return DataFile("a script as data", "DATA011", "load.py", "print()"u8.ToArray(), "load.py");
        yield return DataFile("broken parquet", "DATA012", "x.parquet", "PAR1 no"u8.ToArray(), "x.parquet");
        yield return new("data: fewer samples than a global batch", "DATA021", "fewer than one global batch of 8", work => File.WriteAllText(work.Rows, Good + "\n"), work => Train(work));
        yield return new("data: no such file", "DATA009", "nowhere.jsonl", _ => { }, work => Train(work, "--dataset", work.Path("nowhere.jsonl")));
        yield return new("data: rows that are no number", "DATA010", "#many", _ => { }, work => Train(work, "--dataset", work.Rows + "#many"));
        yield return new("data: every sample too long", "DATA013", "raise max_length", _ => { }, work => Train(work, "--max_length", "4"));
        yield return new("data: columns that are no object", "CFG003", "--columns", _ => { }, work => Train(work, "--columns", "x=y"));
    }

    private static IEnumerable<BadInput> Options()
    {
        yield return Given("CFG001", "did you mean", "--micro_batch_sise", "2");
        yield return Given("CFG003", "--lr", "--lr", "fast");
        yield return Given("CFG005", "--lr = -1", "--lr", "-1");
        yield return Given("CFG005", "--lr = NaN", "--lr", "NaN");
        yield return Given("CFG003", "--train_iters", "--train_iters", "99999999999999999999");
        yield return Given("CFG003", "--optimizer = lion", "--optimizer", "lion");
        yield return Given("CFG007", "--global_batch_size", "--global_batch_size", "6", "--micro_batch_size", "4");
        yield return Given("CFG006", "--min_lr", "--min_lr", "1");
        yield return Given("CFG006", "--recompute_method", "--recompute_granularity", "full", "--recompute_num_layers", "1");
        yield return Given("CFG006", "exclude each other", "--fp16", "--bf16");
        yield return Given("CFG004", "--wandb_project = x", "--wandb_project", "x", "--wandb_exp_name", "y");
        yield return Given("CFG004", "--train_type = lora", "--train_type", "lora");
        yield return Given("CFG004", "--ckpt_format = torch", "--ckpt_format", "torch");
        yield return Given("CFG004", "--external_plugins", "--external_plugins", "plugin.py");
        yield return Given("CFG003", "--extra_megatron_kwargs", "--extra_megatron_kwargs", "[1]");
        yield return Given("CFG001", "no_such", "--extra_megatron_kwargs", """{"no_such": 1}""");
        yield return Given("CFG006", "--model_type = llama", "--model_type", "llama");
        yield return Given("CFG011", "missing.txt", "--system", "missing.txt");
        yield return Given("TPL001", "no_such_template", "--template", "no_such_template");
        yield return Given("CFG005", "--max_shard_size", "--max_shard_size", "big");
        yield return Given("CFG005", "--save is empty", "--save", "");
        yield return Given("CFG051", "give --save", "--save", "", "--resume");
        yield return new("option: verb misspelt", "CFG013", "did you mean sft?", _ => { }, _ => ["sfft"]);
        yield return new("option: no data", "CFG008", "--dataset is missing", _ => { }, work => ["sft", "--model", work.Model, "--train_iters", "2"]);
        yield return new("option: configuration file with a bad key", "CFG001", "train_itres", work => File.WriteAllText(work.Path("run.yaml"), "train_itres: 3\n"),
            work => Train(work, "--config", work.Path("run.yaml")));
    }

    private static IEnumerable<BadInput> Models()
    {
        yield return new("model: no such folder", "MODEL006", "is no folder", _ => { }, work => Train(work, "--model", "Qwen/Qwen2.5-7B"));
        yield return Model("no config.json", "MODEL001", "has no config.json", work => File.Delete(work.Path("model", "config.json")));
        yield return Model("config.json cut off", "MODEL002", "is not valid JSON", work => Rewrite(work, "config.json", bytes => bytes[..(bytes.Length / 2)]));
        yield return Model("unknown architecture", "MODEL003", "MambaForCausalLM", work => Edit(work, config => config["architectures"] = new JsonArray("MambaForCausalLM")));
        yield return Model("no hidden_size", "MODEL004", "hidden_size is missing", work => Edit(work, config => config.Remove("hidden_size")));
        yield return Model("hidden_size is text", "MODEL005", "hidden_size", work => Edit(work, config => config["hidden_size"] = "wide"));
        yield return Model("another activation", "MODEL005", "hidden_act", work => Edit(work, config => config["hidden_act"] = "gelu"));
        yield return Model("unknown rope scaling", "MODEL005", "magic", work => Edit(work, config => config["rope_scaling"] = new JsonObject { ["rope_type"] = "magic", ["factor"] = 2 }));
        yield return Model("no tokenizer", "TOK001", "tokenizer.json", work => File.Delete(work.Path("model", "tokenizer.json")));
        yield return Model("tokenizer cut off", "TOK002", "tokenizer.json", work => Rewrite(work, "tokenizer.json", bytes => bytes[..(bytes.Length / 2)]));
        yield return Model("tokenizer_config.json is a list", "TOK002", "tokenizer_config.json", work => Rewrite(work, "tokenizer_config.json", _ => "[]"u8.ToArray()));
        yield return Model("merge of unknown tokens", "TOK003", "zzqq", work => Rewrite(work, "tokenizer.json",
            bytes => Encoding.UTF8.GetBytes(Encoding.UTF8.GetString(bytes).Replace("\"merges\": [", "\"merges\": [\"zzqq xx\", ", StringComparison.Ordinal))));
        yield return Model("vocabulary above the embedding", "DATA022", "512 embeddings", work =>
        {
            Edit(work, config => config["vocab_size"] = 512);
            Reshape(work, "model.embed_tokens.weight", tensor => tensor.narrow(0, 0, 512).clone());
        });
        yield return Model("args.json is a list", "CFG002", "args.json", work => File.WriteAllText(work.Path("model", "args.json"), "[]"));
    }

    private static IEnumerable<BadInput> Weights()
    {
        yield return Model("no weights", "MODEL005", "holds neither", work => File.Delete(Shard(work)));
        foreach (var name in new[] { "pytorch_model.bin", "consolidated.00.pth", "model.pt" })
            yield return Model($"only {name}", "MODEL005", "never read", work => File.Move(Shard(work), work.Path("model", name)));
        yield return Model("weights cut off", "ST", "model.safetensors", work => Rewrite(work, "model.safetensors", bytes => bytes[..^100]));
        yield return Model("weights of 0 bytes", "ST001", "model.safetensors", work => Rewrite(work, "model.safetensors", _ => []));
        yield return Model("LFS pointer", "ST024", "LFS", work => Rewrite(work, "model.safetensors",
            _ => "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"u8.ToArray()));
        yield return Model("header length of 2^62", "ST002", "model.safetensors", work => Rewrite(work, "model.safetensors", bytes => [.. BitConverter.GetBytes(1L << 62), .. bytes[8..]]));
        yield return Model("header that is no JSON", "ST005", "model.safetensors", work => Rewrite(work, "model.safetensors", bytes =>
        {
            bytes[8 + 1] = (byte)'x'; // where the first name begins
            return bytes;
        }));
        yield return Model("missing tensor", "MODEL001", "model.norm.weight", work => Reshape(work, "model.norm.weight", _ => null));
        yield return Model("wrong shape", "MODEL003", "model.norm.weight", work => Reshape(work, "model.norm.weight", _ => ones(7)));
        yield return Model("integer weights", "MODEL004", "model.norm.weight", work => Reshape(work, "model.norm.weight", tensor => tensor.to_type(ScalarType.Int32)));
        yield return Model("NaN weights", "MODEL010", "NaN", work => Reshape(work, "model.norm.weight", tensor => tensor * float.NaN));
        yield return Model("config of another depth", "MODEL001", "model.layers.1.", work => Edit(work, config => config["num_hidden_layers"] = 2));
        yield return Model("index that names a missing file", "ST", "model-00001-of-00001.safetensors", work =>
        {
            File.Delete(Shard(work));
            File.WriteAllText(work.Path("model", "model.safetensors.index.json"), """{"weight_map":{"model.norm.weight":"model-00001-of-00001.safetensors"}}""");
        });
        yield return Model("index that leads outside", "ST", "../", work =>
        {
            File.Delete(Shard(work));
            File.WriteAllText(work.Path("model", "model.safetensors.index.json"), """{"weight_map":{"model.norm.weight":"../other.safetensors"}}""");
        });
    }

    private static IEnumerable<BadInput> Checkpoints()
    {
        yield return new("checkpoint: no such folder", "CKPT001", "no such folder", _ => { }, work => Train(work, "--load", work.Path("nowhere")));
        yield return new("checkpoint: empty folder", "CKPT004", "holds no checkpoint", work => Directory.CreateDirectory(work.Path("empty")), work => Train(work, "--load", work.Path("empty")));
        yield return new("checkpoint: a Hugging Face folder", "CKPT002", "give it by --model", _ => { }, work => Train(work, "--load", work.Model));
        yield return new("checkpoint: pickle files of Megatron-LM", "CKPT002", "was written by Megatron-LM; convert its weights", work =>
        {
            Directory.CreateDirectory(work.Path("mg", "iter_0000010"));
            File.WriteAllText(work.Path("mg", "iter_0000010", "__0_0.distcp"), "");
        }, work => Train(work, "--load", work.Path("mg")));
        yield return new("checkpoint: resume from nothing", "CKPT002", "no checkpoint to resume from", _ => { }, work => Train(work, "--resume"));
    }

    private static IEnumerable<BadInput> Outputs()
    {
        yield return new("output: below a file", "DISK001", "cannot be written", _ => { }, work => Train(work, "--save", Path.Combine(work.Rows, "out")));
        yield return new("output: read-only system", "DISK001", "cannot be written", _ => { }, work => Train(work, "--save", "/proc/megatron-out"));
        yield return new("export: existing output_dir", "DISK002", "exists already", work => Directory.CreateDirectory(work.Path("there")),
            work => ["export", "--to_mcore", "--model", work.Model, "--output_dir", work.Path("there")]);
        yield return new("export: output_dir below a file", "DISK003", "was not written", _ => { },
            work => ["export", "--to_mcore", "--model", work.Model, "--output_dir", Path.Combine(work.Rows, "out")]);
        yield return new("export: output_dir in a read-only system", "DISK003", "was not written", _ => { },
            work => ["export", "--to_mcore", "--model", work.Model, "--output_dir", "/proc/megatron-out"]);
        yield return new("export: neither direction", "CFG008", "--to_mcore and --to_hf", _ => { }, work => ["export", "--model", work.Model]);
        yield return new("export: no checkpoint", "CFG021", "--mcore_model", _ => { }, work => ["export", "--to_hf", "--output_dir", work.Path("hf")]);
        yield return new("export: weights cut off", "ST", "model.safetensors", work => Rewrite(work, "model.safetensors", bytes => bytes[..^100]),
            work => ["export", "--to_mcore", "--model", work.Model, "--output_dir", work.Path("mcore")]);
        yield return new("export: size that is none", "CFG005", "--max_shard_size", _ => { },
            work => ["export", "--to_mcore", "--model", work.Model, "--output_dir", work.Path("mcore"), "--max_shard_size", "0GB"]);
        yield return new("verify: no such folder", "GOLD001", "nowhere", _ => { }, work => ["verify", "--golden", work.Path("nowhere")]);
    }

    private static string Shard(Workspace work) => work.Path("model", "model.safetensors");

    private static void Rewrite(Workspace work, string file, Func<byte[], byte[]> change)
    {
        var path = work.Path("model", file);
        File.WriteAllBytes(path, change(File.ReadAllBytes(path)));
    }

    private static void Edit(Workspace work, Action<JsonObject> change) => Rewrite(work, "config.json", bytes =>
    {
        var config = JsonNode.Parse(bytes)?.AsObject() ?? [];
        change(config);
        return Encoding.UTF8.GetBytes(config.ToJsonString());
    });

    /// <summary>Writes the weights again with one tensor changed, or left out when the change returns null.</summary>
    private static void Reshape(Workspace work, string name, Func<Tensor, Tensor?> change)
    {
        using var scope = NewDisposeScope();
        var tensors = new List<HfTensor>();
        using (var weights = HfWeightFolder.Open(work.Model))
        {
            foreach (var old in weights.Names.Order(StringComparer.Ordinal))
            {
                var value = weights.ReadTensor(old);
                if ((old == name ? change(value) : value) is not { } kept) continue;
                var dtype = kept.dtype == ScalarType.Int32 ? SafetensorsDType.I32 : SafetensorsDType.F32;
                tensors.Add(new HfTensor(new SafetensorsSpec(old, dtype, kept.shape), () => kept.clone()));
            }
        }
        File.Delete(Shard(work));
        HfFolderWriter.WriteWeights(work.Model, tensors, long.MaxValue);
    }
}
