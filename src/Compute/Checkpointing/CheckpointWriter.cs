using System.Globalization;
using System.Text;
using Megatron.Compute.Native;

namespace Megatron.Compute.Checkpointing;

/// <summary>What one rank puts into a checkpoint.</summary>
public sealed record RankContent
{
    /// <summary>All weights of the model in the training dtype, cut into files: the same on every rank.</summary>
    public required HfShardPlan ModelPlan { get; init; }

    /// <summary>The blocks that this rank writes. Over all ranks each element exactly once: a replicated block is named by one rank only. Enumerated once, so that blocks may be read as they are written.</summary>
    public required IEnumerable<WeightBlock> Weights { get; init; }

    /// <summary>The slices that this rank writes, likewise; empty for a weights-only checkpoint.</summary>
    public required IReadOnlyList<StateSlice> State { get; init; }

    /// <summary>Configuration and tokenizer: rank 0 only, null elsewhere.</summary>
    public required HfSideFiles? SideFiles { get; init; }
}

/// <summary>One rank's part of a checkpoint, on disk and synced: the content of its receipt.</summary>
/// <param name="Rank">Global rank.</param>
/// <param name="Files">Files that this rank alone wrote. Weight files are shared and hashed at commit.</param>
/// <param name="ManifestPart">Tensors, written blocks and slices as JSON.</param>
public sealed record RankPart(int Rank, IReadOnlyList<CheckpointFile> Files, string ManifestPart);

/// <summary>Writes a rank's part of a checkpoint into the temporary folder of the save (DESIGN D11).</summary>
public static class CheckpointWriter
{
    /// <summary>
    /// Writes <c>state/rank-00000.safetensors</c>, this rank's blocks of <c>model*.safetensors</c> and, on the rank that has them, the files
    /// beside the weights. Called by every rank between two steps; blocks until the files are on the device.
    /// </summary>
    /// <param name="folder">What <see cref="CheckpointStore.BeginSave"/> returned.</param>
    /// <param name="rank">Global rank.</param>
    /// <param name="content">What to write.</param>
    /// <exception cref="IOException">The disk is full or failed; the save is lost, training may go on.</exception>
    public static RankPart WriteRank(string folder, int rank, RankContent content)
    {
        var files = new List<CheckpointFile>();
        using (var model = new ModelFiles(folder, content.ModelPlan))
        {
            foreach (var weight in content.Weights) model.Write(weight);
            model.Flush();
        }
        var state = content.State.Count == 0 ? null : WriteState(folder, rank, content.State, files);
        IReadOnlyList<ManifestTensor> tensors = [];
        if (content.SideFiles is { } side)
        {
            files.AddRange(HfFolderWriter.WriteSideFiles(folder, side));
            if (content.ModelPlan.IsSharded) files.Add(HfFolderWriter.WriteFile(folder, HfShardPlan.IndexFileName, content.ModelPlan.MakeIndex()));
            tensors = [.. content.ModelPlan.Shards.SelectMany(shard => shard.Tensors.Select(spec => new ManifestTensor(spec.Name, spec.Shape, spec.DType, shard.FileName)))];
        }
        FileSync.FlushPath(folder);
        var written = content.Weights.Select(weight => new WrittenBlock(weight.Block.Name, weight.Block.Offset, weight.Block.Shape)).ToList();
        return new RankPart(rank, files, Encoding.UTF8.GetString(StrictJson.Write(new ManifestPart(tensors, written, state))));
    }

    /// <summary>Bytes that a rank's state slices take on disk, for the free-space check.</summary>
    public static long StateBytes(IReadOnlyList<StateSlice> state) => state.Sum(slice => (slice.End - slice.Begin) * slice.Values.element_size());

    private static ManifestStateFile WriteState(string folder, int rank, IReadOnlyList<StateSlice> state, List<CheckpointFile> files)
    {
        var name = string.Create(CultureInfo.InvariantCulture, $"state/rank-{rank:D5}.safetensors");
        var stateFolder = Path.Combine(folder, "state");
        Directory.CreateDirectory(stateFolder);
        var slices = state.Select(slice => new CheckpointSlice(EntryName(slice), slice.Block.Name, slice.Kind, slice.Block.Offset, slice.Block.Shape, slice.Begin, slice.End)).ToList();
        var specs = state.Zip(slices, (slice, entry) => new SafetensorsSpec(entry.Entry, TensorBytes.ToSafetensors(slice.Values.dtype), [slice.End - slice.Begin])).ToList();
        using var writer = new SafetensorsWriter(Path.Combine(folder, name), specs, SafetensorsWriter.PyTorchFormat);
        foreach (var slice in state) writer.Write(slice.Values);
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
