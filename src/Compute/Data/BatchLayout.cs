namespace Megatron.Compute.Data;

/// <summary>How one rank's share of a global batch is laid out as rows of tokens. It never changes which samples a batch holds.</summary>
public sealed record BatchLayout
{
    /// <summary>This rank's place among the data-parallel ranks.</summary>
    public required int DataParallelRank { get; init; }

    /// <summary>Number of data-parallel ranks.</summary>
    public required int DataParallelSize { get; init; }

    /// <summary>Samples laid one after another in a row.</summary>
    public required int MicroBatchSize { get; init; }

    /// <summary>A row is padded to a multiple of this many tokens; 1 = not padded. Training uses 128, <c>verify</c> 1.</summary>
    public required int PadRowToMultiple { get; init; }

    /// <summary>Each sample is padded to a multiple of this many tokens: 2·cp with context parallelism (zigzag halves), 1 without.</summary>
    public required int PadSampleToMultiple { get; init; }

    /// <summary>Token id of padding positions.</summary>
    public required int PadTokenId { get; init; }

    /// <summary>The layout of one rank alone that pads nothing.</summary>
    public static BatchLayout SingleRankUnpadded(int microBatchSize) => new()
    {
        DataParallelRank = 0,
        DataParallelSize = 1,
        MicroBatchSize = microBatchSize,
        PadRowToMultiple = 1,
        PadSampleToMultiple = 1,
        PadTokenId = 0,
    };
}
