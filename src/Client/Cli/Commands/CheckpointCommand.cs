using System.Globalization;
using System.Security.Cryptography;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Checkpointing.Mcore;
using Megatron.Compute.Configuration;
using Spectre.Console;

namespace Megatron.Client.Cli.Commands;

/// <summary>
/// <c>megatron checkpoint inspect|verify|prune DIR</c>: what a run's folder, or one checkpoint, holds; whether it is what was saved; and retention
/// by hand. Needs neither libtorch nor a device.
/// </summary>
/// <param name="console">Where to print.</param>
/// <param name="time">Clock of the checkpoint store.</param>
public sealed class CheckpointCommand(CommandConsole console, TimeProvider time) : IVerbCommand
{
    private const string Usage = "give megatron checkpoint inspect DIR, verify DIR [--sha256] or prune DIR --save_total_limit N";

    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var words = Words.Parse(options.Words);
        return Task.FromResult(words.Action switch
        {
            "inspect" => Inspect(words.Folder),
            "verify" => Verify(words.Folder, words.Sha256),
            _ => Prune(words.Folder, words.Keep ?? throw new ConfigException("CFG008", $"--save_total_limit is missing; {Usage}.")),
        });
    }

    private int Inspect(string folder)
    {
        if (CheckpointLocator.IsCheckpoint(folder))
        {
            Describe(new StoredCheckpoint(folder, CheckpointStore.ReadManifest(folder)));
            return ExitCode.Ok;
        }
        if (McoreWeights.FindFolder(folder) is { } mcore)
        {
            DescribeMcore(mcore);
            return ExitCode.Ok;
        }
        var table = MakeTable("checkpoint", "iteration", "created (UTC)", "samples", "layout", "optimizer", "weights", "MiB", "");
        foreach (var path in CheckpointLocator.List(folder, time))
        {
            try
            {
                var manifest = CheckpointStore.ReadManifest(path);
                table.AddRow(
                    Path.GetFileName(path), Number(manifest.Run.Trainer.Iteration), manifest.CreatedUtc.UtcDateTime.ToString("yyyy-MM-dd HH:mm:ss", CultureInfo.InvariantCulture),
                    Number(manifest.Run.Trainer.ConsumedSamples), Layout(manifest.Run.Layout), manifest.HasOptimizerState() ? "yes" : "no",
                    manifest.HasWeightFiles() ? "Hugging Face" : "in the state", Number(manifest.Files.Sum(file => file.SizeBytes) >> 20), "");
            }
            catch (ConfigException exception)
            {
                table.AddRow(Path.GetFileName(path), "", "", "", "", "", "", "", Markup.Escape(exception.Errors[0].Code));
            }
        }
        Print(table);
        return ExitCode.Ok;
    }

    private void Describe(StoredCheckpoint checkpoint)
    {
        var (manifest, run) = (checkpoint.Manifest, checkpoint.Manifest.Run);
        console.Out.WriteLine($"{checkpoint.Folder}: iteration {Number(run.Trainer.Iteration)} of job {run.JobId}, attempt {Number(run.Attempt)}, saved {manifest.CreatedUtc.UtcDateTime:yyyy-MM-dd HH:mm:ss} UTC by {manifest.Writer}");
        console.Out.WriteLine($"layout {Layout(run.Layout)}; global batch {Number(run.GlobalBatchSize)}, consumed samples {Number(run.Trainer.ConsumedSamples)}, optimizer steps {Number(run.Trainer.OptimizerSteps)}, next batch {Number(run.Trainer.Data.NextBatch)}, data plan {run.Trainer.Data.PlanHash:x16}");
        console.Out.WriteLine($"seed {(run.Trainer.Seed is { } seed ? seed.ToString(CultureInfo.InvariantCulture) : "not saved")}, loss scale {(run.Trainer.LossScaler is { } scaler ? scaler.ToString() : "none")}, weight hash {manifest.WeightHash ?? "none"}");
        foreach (var (name, facts) in new[] { ("model", run.ModelConfig), ("optimizer", run.Optimizer), ("schedule", run.Schedule) })
            console.Out.WriteLine($"{name}: {(facts.Count == 0 ? "not saved" : string.Join(", ", facts.Select(fact => $"{fact.Key} {fact.Value}")))}");
        var tensors = MakeTable("tensor", "dtype", "shape", "file", "slices of state");
        var slices = manifest.State.SelectMany(state => state.Slices).ToLookup(slice => slice.Tensor, StringComparer.Ordinal);
        foreach (var tensor in manifest.Tensors)
            tensors.AddRow(
                Markup.Escape(tensor.Name), tensor.DType.ToString(), Markup.Escape($"[{string.Join(", ", tensor.Shape)}]"), tensor.File ?? "-",
                string.Join(", ", slices[tensor.Name].GroupBy(slice => slice.Kind).Select(group => $"{Number(group.Count())} {KindName(group.Key)}")));
        Print(tensors);
        var files = MakeTable("file", "bytes", "XxHash128");
        foreach (var file in manifest.Files) files.AddRow(Markup.Escape(file.Name), Number(file.SizeBytes), file.XxHash128);
        Print(files);
    }

    private void DescribeMcore(string folder)
    {
        console.Out.WriteLine($"{folder} was written by Megatron-LM (torch_dist); megatron export --to_hf reads its model weights");
        var table = MakeTable("tensor", "dtype", "shape", "chunks");
        foreach (var (key, info, numChunks) in McoreWeights.Describe(folder))
            table.AddRow(Markup.Escape(key), info.DType.ToString(), Markup.Escape($"[{string.Join(", ", info.Shape)}]"), Number(numChunks));
        Print(table);
    }

    private int Verify(string folder, bool sha256)
    {
        var failed = 0;
        var paths = CheckpointLocator.IsCheckpoint(folder) ? [folder] : CheckpointLocator.List(folder, time);
        foreach (var path in paths)
        {
            try
            {
                var manifest = CheckpointStore.Verify(path, CheckpointVerification.Full);
                console.Out.WriteLine($"{Path.GetFileName(path)}: sound, {Number(manifest.Files.Count)} files of {Number(manifest.Files.Sum(file => file.SizeBytes) >> 20)} MiB have the hashes of the manifest");
                if (sha256)
                    foreach (var file in manifest.Files.Select(file => file.Name).Append(CheckpointManifest.FileName))
                        console.Out.WriteLine($"{Sha256(Path.Combine(path, file))}  {Path.GetFileName(path)}/{file}");
            }
            catch (ConfigException exception)
            {
                failed++;
                console.Out.WriteLine($"{Path.GetFileName(path)}: DAMAGED");
                console.Report(exception.Errors);
            }
        }
        console.Out.WriteLine($"{Number(paths.Count - failed)} of {Number(paths.Count)} checkpoints are sound");
        return failed == 0 ? ExitCode.Ok : ExitCode.Failed;
    }

    private int Prune(string folder, int keep)
    {
        CheckpointLocator.List(folder, time);
        var deleted = new CheckpointStore(folder, time).Prune(keep, CheckpointVerification.Full);
        foreach (var path in deleted) console.Out.WriteLine($"deleted {path}");
        console.Out.WriteLine($"{Number(deleted.Count)} checkpoints deleted; the newest one that verifies is never deleted");
        return ExitCode.Ok;
    }

    private static string Sha256(string path)
    {
        using var stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, 1 << 20, FileOptions.SequentialScan);
        return Convert.ToHexStringLower(SHA256.HashData(stream));
    }

    private static string Layout(CheckpointLayout layout) =>
        $"tp{Number(layout.TensorParallel)} pp{Number(layout.PipelineParallel)} vp{Number(layout.VirtualPipeline)} cp{Number(layout.ContextParallel)} ep{Number(layout.ExpertParallel)} dp{Number(layout.DataParallel)}";

    private static string KindName(StateKind kind) => kind switch
    {
        StateKind.Master => "master",
        StateKind.ExpAvg => "exp_avg",
        StateKind.ExpAvgSq => "exp_avg_sq",
        _ => "momentum",
    };

    private static string Number(long value) => value.ToString(CultureInfo.InvariantCulture);

    private static Table MakeTable(params string[] columns) => new Table { Border = TableBorder.None }.AddColumns(columns);

    private void Print(Table table)
    {
        var writer = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(console.Out), ColorSystem = ColorSystemSupport.NoColors });
        writer.Profile.Width = 240;
        writer.Write(table);
    }

    /// <summary>The words after <c>checkpoint</c>.</summary>
    private sealed record Words(string Action, string Folder, bool Sha256, int? Keep)
    {
        public static Words Parse(IReadOnlyList<string> words)
        {
            if (words.Count == 0 || words[0] is not ("inspect" or "verify" or "prune"))
                throw new ConfigException("CFG008", $"megatron checkpoint{(words.Count == 0 ? "" : $" {words[0]}")} says not what to do; {Usage}.");
            string? folder = null;
            var sha256 = false;
            int? keep = null;
            for (var i = 1; i < words.Count; i++)
            {
                if (words[i] == "--sha256" && words[0] == "verify") sha256 = true;
                else if (words[i] is "--save_total_limit" or "--save-total-limit" && words[0] == "prune" && i + 1 < words.Count) keep = Limit(words[++i]);
                else if (words[i].StartsWith('-') || folder is not null) throw new ConfigException("CFG001", $"megatron checkpoint {words[0]} does not know {words[i]}; {Usage}.");
                else folder = words[i];
            }
            if (folder is null) throw new ConfigException("CFG008", $"megatron checkpoint {words[0]} needs a folder; {Usage}.");
            return new Words(words[0], Path.TrimEndingDirectorySeparator(Path.GetFullPath(folder)), sha256, keep);
        }

        private static int Limit(string word) => int.TryParse(word, NumberStyles.None, CultureInfo.InvariantCulture, out var keep) && keep > 0
            ? keep
            : throw new ConfigException("CFG005", $"--save_total_limit = {word} is out of range; give 1 or more.");
    }
}
