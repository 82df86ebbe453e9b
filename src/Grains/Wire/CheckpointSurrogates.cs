using Megatron.Compute.Checkpointing;
using Megatron.Compute.Training;

namespace Megatron.Grains.Wire;

[GenerateSerializer]
internal struct CheckpointFileSurrogate
{
    [Id(0)] public string Name;
    [Id(1)] public long SizeBytes;
    [Id(2)] public string XxHash128;
}

[RegisterConverter]
internal sealed class CheckpointFileConverter : IConverter<CheckpointFile, CheckpointFileSurrogate>
{
    public CheckpointFile ConvertFromSurrogate(in CheckpointFileSurrogate s) => new(s.Name, s.SizeBytes, s.XxHash128);

    public CheckpointFileSurrogate ConvertToSurrogate(in CheckpointFile v) => new() { Name = v.Name, SizeBytes = v.SizeBytes, XxHash128 = v.XxHash128 };
}

[GenerateSerializer]
internal struct CheckpointReceiptSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public string SaveId;
    [Id(3)] public long Iteration;
    [Id(4)] public CheckpointFile[] Files;
    [Id(5)] public string ManifestPart;
}

[RegisterConverter]
internal sealed class CheckpointReceiptConverter : IConverter<CheckpointReceipt, CheckpointReceiptSurrogate>
{
    public CheckpointReceipt ConvertFromSurrogate(in CheckpointReceiptSurrogate s) =>
        new(s.Attempt, s.Rank, s.SaveId, s.Iteration, s.Files, s.ManifestPart);

    public CheckpointReceiptSurrogate ConvertToSurrogate(in CheckpointReceipt v) => new()
    {
        Attempt = v.Attempt,
        Rank = v.Rank,
        SaveId = v.SaveId,
        Iteration = v.Iteration,
        Files = [.. v.Files],
        ManifestPart = v.ManifestPart,
    };
}

[GenerateSerializer]
internal struct CheckpointCommittedSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public string SaveId;
    [Id(3)] public long Iteration;
    [Id(4)] public string Folder;
}

[RegisterConverter]
internal sealed class CheckpointCommittedConverter : IConverter<CheckpointCommitted, CheckpointCommittedSurrogate>
{
    public CheckpointCommitted ConvertFromSurrogate(in CheckpointCommittedSurrogate s) => new(s.Attempt, s.Rank, s.SaveId, s.Iteration, s.Folder);

    public CheckpointCommittedSurrogate ConvertToSurrogate(in CheckpointCommitted v) =>
        new() { Attempt = v.Attempt, Rank = v.Rank, SaveId = v.SaveId, Iteration = v.Iteration, Folder = v.Folder };
}
