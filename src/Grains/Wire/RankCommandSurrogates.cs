using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Training;

namespace Megatron.Grains.Wire;

// The records of the waist live in Compute, which knows no Orleans. Each gets its stable wire form here; a test checks that none is forgotten.

[GenerateSerializer]
internal struct AttemptIdSurrogate
{
    [Id(0)] public string JobId;
    [Id(1)] public int Attempt;
}

[RegisterConverter]
internal sealed class AttemptIdConverter : IConverter<AttemptId, AttemptIdSurrogate>
{
    public AttemptId ConvertFromSurrogate(in AttemptIdSurrogate s) => new(s.JobId, s.Attempt);

    public AttemptIdSurrogate ConvertToSurrogate(in AttemptId v) => new() { JobId = v.JobId, Attempt = v.Attempt };
}

[GenerateSerializer]
internal struct StartRankSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public string ConfigJson;
    [Id(2)] public int Rank;
    [Id(3)] public int WorldSize;
    [Id(4)] public int LocalRank;
    [Id(5)] public string RendezvousEndpoint;
    [Id(6)] public string? LoadFolder;
    [Id(7)] public int[]? SnapshotPartners;
    [Id(8)] public int? NumThreads;
    [Id(9)] public StageWork? Work;
}

[RegisterConverter]
internal sealed class StartRankConverter : IConverter<StartRank, StartRankSurrogate>
{
    public StartRank ConvertFromSurrogate(in StartRankSurrogate s) =>
        new(s.Attempt, s.ConfigJson, s.Rank, s.WorldSize, s.LocalRank, s.RendezvousEndpoint, s.LoadFolder)
        {
            SnapshotPartners = s.SnapshotPartners ?? [],
            NumThreads = s.NumThreads,
            Work = s.Work,
        };

    public StartRankSurrogate ConvertToSurrogate(in StartRank v) => new()
    {
        Attempt = v.Attempt,
        ConfigJson = v.ConfigJson,
        Rank = v.Rank,
        WorldSize = v.WorldSize,
        LocalRank = v.LocalRank,
        RendezvousEndpoint = v.RendezvousEndpoint,
        LoadFolder = v.LoadFolder,
        SnapshotPartners = [.. v.SnapshotPartners],
        NumThreads = v.NumThreads,
        Work = v.Work,
    };
}

[GenerateSerializer]
internal struct StopRankSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public bool SaveCheckpoint;
    [Id(2)] public string Reason;
}

[RegisterConverter]
internal sealed class StopRankConverter : IConverter<StopRank, StopRankSurrogate>
{
    public StopRank ConvertFromSurrogate(in StopRankSurrogate s) => new(s.Attempt, s.SaveCheckpoint, s.Reason);

    public StopRankSurrogate ConvertToSurrogate(in StopRank v) =>
        new() { Attempt = v.Attempt, SaveCheckpoint = v.SaveCheckpoint, Reason = v.Reason };
}

[GenerateSerializer]
internal struct AbortRankSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public string Reason;
}

[RegisterConverter]
internal sealed class AbortRankConverter : IConverter<AbortRank, AbortRankSurrogate>
{
    public AbortRank ConvertFromSurrogate(in AbortRankSurrogate s) => new(s.Attempt, s.Reason);

    public AbortRankSurrogate ConvertToSurrogate(in AbortRank v) => new() { Attempt = v.Attempt, Reason = v.Reason };
}

[GenerateSerializer]
internal struct CommitCheckpointSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public string SaveId;
    [Id(2)] public long Iteration;
    [Id(3)] public CheckpointReceipt[] Receipts;
}

[RegisterConverter]
internal sealed class CommitCheckpointConverter : IConverter<CommitCheckpoint, CommitCheckpointSurrogate>
{
    public CommitCheckpoint ConvertFromSurrogate(in CommitCheckpointSurrogate s) => new(s.Attempt, s.SaveId, s.Iteration, s.Receipts);

    public CommitCheckpointSurrogate ConvertToSurrogate(in CommitCheckpoint v) =>
        new() { Attempt = v.Attempt, SaveId = v.SaveId, Iteration = v.Iteration, Receipts = [.. v.Receipts] };
}
