using System.Globalization;
using System.Text;
using Megatron.Compute.Native;

namespace Megatron.Compute.Checkpointing;

/// <summary>What one rank puts into a checkpoint.</summary>
public sealed record RankContent
{
    /// <summary>All weights of the model in the training dtype, cut into files: the same on every rank.</summary>
    public required HfShardPlan ModelPlan { get; init; }

    /// <summary>False leaves the weight files out (<c>--save_safetensors false</c>): the masters in the state are the weights then.</summary>
    public bool WritesWeights { get; init; } = true;

    /// <summary>The blocks that this rank writes. Over all ranks each element exactly once: a replicated block is named by one rank only.</summary>
    public required IReadOnlyList<WeightBlock> Weights { get; init; }

    /// <summary>The slices that this rank writes, likewise; empty for a weights-only checkpoint.</summary>
    public required IReadOnlyList<StateSlice> State { get; init; }

    /// <summary>Configuration and tokenizer: rank 0 only, null elsewhere.</summary>
    public required HfSideFiles? SideFiles { get; init; }
}

/// <summary>One rank's part of a checkpoint, on disk and synced: the content of its receipt.</summary>
/// <param name="Rank">Global rank.</param>
/// <param name="Files">Files that this rank alone wrote. Weight files that several ranks share are hashed at commit.</param>
/// <param name="ManifestPart">Tensors, written blocks and slices as JSON.</param>
public sealed record RankPart(int Rank, IReadOnlyList<CheckpointFile> Files, string ManifestPart);

/// <summary>Writes a rank's part of a checkpoint into the temporary folder of the save (DESIGN D11).</summary>
public static class CheckpointWriter
{
    /// <summary>
    /// Writes <c>state/rank-00000.safetensors</c>, this rank's blocks of <c>model*.safetensors</c> and, on the rank that has them, the files
    /// beside the weights. Called once by every rank, on any thread; blocks until the files are on the device.
    /// </summary>
    /// <param name="folder">What <see cref="CheckpointStore.BeginSave"/> returned.</param>
    /// <param name="rank">Global rank.</param>
    /// <param name="content">What to write.</param>
    /// <param name="cancellation">Ends the write between two tensors.</param>
    /// <exception cref="IOException">The disk is full or failed; the save is lost, training may go on.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled; the folder is garbage.</exception>
    public static RankPart WriteRank(string folder, int rank, RankContent content, CancellationToken cancellation = default)
    {
        var files = new List<CheckpointFile>();
        var hashes = content.WritesWeights ? WriteWeights(folder, content, files, cancellation) : [];
        var state = content.State.Count == 0 ? null : WriteState(folder, rank, content.State, files, cancellation);
        IReadOnlyList<ManifestTensor> tensors = [];
        if (content.SideFiles is { } side)
        {
            files.AddRange(HfFolderWriter.WriteSideFiles(folder, side));
            if (content.WritesWeights) WriteIndex(folder, content.ModelPlan, files);
            tensors = Tensors(content.ModelPlan, content.WritesWeights);
        }
        FileSync.FlushPath(folder);
        var written = content.Weights.Select(weight => new WrittenBlock(weight.Block.Name, weight.Block.Offset, weight.Block.Shape)).ToList();
        return MakePart(rank, files, new ManifestPart(tensors, written, state, hashes));
    }

    /// <summary>The only part of a checkpoint that was converted: its weight files are written and synced already.</summary>
    /// <param name="folder">The save's folder.</param>
    /// <param name="plan">Weights and their files.</param>
    /// <param name="weights">The files, hashed while they were written.</param>
    /// <param name="side">Configuration and tokenizer.</param>
    /// <exception cref="IOException">The disk is full or failed.</exception>
    internal static RankPart WriteConverted(string folder, HfShardPlan plan, IReadOnlyList<HashedFile> weights, HfSideFiles side)
    {
        var files = weights.Select(file => file.File).ToList();
        files.AddRange(HfFolderWriter.WriteSideFiles(folder, side));
        WriteIndex(folder, plan, files);
        FileSync.FlushPath(folder);
        var written = plan.Shards.SelectMany(shard => shard.Tensors).Select(spec => new WrittenBlock(spec.Name, new long[spec.Shape.Length], spec.Shape)).ToList();
        return MakePart(0, files, new ManifestPart(Tensors(plan, isWritten: true), written, null, [.. weights.SelectMany(file => file.Tensors)]));
    }

    /// <summary>Bytes that a rank's state slices take on disk, for the free-space check.</summary>
    public static long StateBytes(IReadOnlyList<StateSlice> state) => state.Sum(slice => (slice.End - slice.Begin) * slice.Values.element_size());

    private static IReadOnlyList<TensorHash> WriteWeights(string folder, RankContent content, List<CheckpointFile> files, CancellationToken cancellation)
    {
        // In file order, so that a rank that has all of a file hashes it on the way.
        var order = content.ModelPlan.Shards.SelectMany(shard => shard.Tensors).Select((spec, index) => (spec.Name, index)).ToDictionary(StringComparer.Ordinal);
        using var model = new ModelFiles(folder, content.ModelPlan);
        foreach (var weight in content.Weights.OrderBy(weight => order.GetValueOrDefault(weight.Block.Name)))
        {
            cancellation.ThrowIfCancellationRequested();
            model.Write(weight);
        }
        var hashed = model.Finish();
        files.AddRange(hashed.Select(file => file.File));
        return [.. hashed.SelectMany(file => file.Tensors)];
    }

    private static void WriteIndex(string folder, HfShardPlan plan, List<CheckpointFile> files)
    {
        if (plan.IsSharded) files.Add(HfFolderWriter.WriteFile(folder, HfShardPlan.IndexFileName, plan.MakeIndex()));
    }

    private static IReadOnlyList<ManifestTensor> Tensors(HfShardPlan plan, bool isWritten) =>
        [.. plan.Shards.SelectMany(shard => shard.Tensors.Select(spec => new ManifestTensor(spec.Name, spec.Shape, spec.DType, isWritten ? shard.FileName : null)))];

    private static RankPart MakePart(int rank, IReadOnlyList<CheckpointFile> files, ManifestPart part) =>
        new(rank, files, Encoding.UTF8.GetString(StrictJson.Write(part)));

    private static ManifestStateFile WriteState(
        string folder, int rank, IReadOnlyList<StateSlice> state, List<CheckpointFile> files, CancellationToken cancellation)
    {
        var name = string.Create(CultureInfo.InvariantCulture, $"state/rank-{rank:D5}.safetensors");
        var stateFolder = Path.Combine(folder, "state");
        Directory.CreateDirectory(stateFolder);
        var slices = state.Select(slice => new CheckpointSlice(EntryName(slice), slice.Block.Name, slice.Kind, slice.Block.Offset, slice.Block.Shape, slice.Begin, slice.End)).ToList();
        var specs = state.Zip(slices, (slice, entry) => new SafetensorsSpec(entry.Entry, TensorBytes.ToSafetensors(slice.Values.dtype), [slice.End - slice.Begin])).ToList();
        using var writer = new SafetensorsWriter(Path.Combine(folder, name), specs, SafetensorsWriter.PyTorchFormat);
        foreach (var slice in state)
        {
            cancellation.ThrowIfCancellationRequested();
            writer.Write(slice.Values);
        }
        files.Add(writer.Finish() with { Name = name });
        FileSync.FlushPath(stateFolder);
        return new ManifestStateFile(name, slices);
    }

    /// <summary>Unique in a file: the tensor's name and kind, and where the slice begins unless that is the tensor's first element.</summary>
    private static string EntryName(StateSlice slice)
    {
        var kind = slice.Kind switch
        {
            StateKind.Master => "master",
            StateKind.ExpAvg => "exp_avg",
            StateKind.ExpAvgSq => "exp_avg_sq",
            _ => "momentum",
        };
        var isFirst = slice.Begin == 0 && slice.Block.Offset.All(offset => offset == 0);
        return isFirst
            ? $"{slice.Block.Name}.{kind}"
            : string.Create(CultureInfo.InvariantCulture, $"{slice.Block.Name}.{kind}@{string.Join(',', slice.Block.Offset)}+{slice.Begin}");
    }
}
