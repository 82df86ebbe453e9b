using Megatron.Compute.Configuration;

namespace Megatron.Compute.Distributed;

/// <summary>The groups that a rank belongs to; see the properties of <see cref="ParallelState"/> for what each is for.</summary>
public enum GroupKind
{
    /// <summary>Varies tp.</summary>
    TensorParallel,

    /// <summary>Varies pp.</summary>
    PipelineParallel,

    /// <summary>Varies cp.</summary>
    ContextParallel,

    /// <summary>Varies dp.</summary>
    DataParallel,

    /// <summary>Varies dp and cp.</summary>
    DataContextParallel,

    /// <summary>Varies ep (expert grid).</summary>
    ExpertParallel,

    /// <summary>Varies etp (expert grid).</summary>
    ExpertTensorParallel,

    /// <summary>Varies edp (expert grid).</summary>
    ExpertDataParallel,

    /// <summary>Varies tp and pp.</summary>
    ModelParallel,

    /// <summary>First and last stage; for ranks of middle stages the rank alone.</summary>
    Embedding,

    /// <summary>All ranks.</summary>
    World,
}

/// <summary>
/// The process grid as arithmetic: no group is opened here. Rank order is tp-cp-ep-dp-pp with tp fastest (numerics 3.12). Two grids lie
/// over the same ranks: dense (tp, cp, dp, pp) and expert (etp, ep, edp, pp); pp is the slowest axis of both, so stages coincide.
/// </summary>
public sealed record ParallelDims
{
    private const string Code = "CFG020";

    public int WorldSize { get; }
    public int TensorParallelSize { get; }
    public int PipelineParallelSize { get; }
    public int ContextParallelSize { get; }
    public int ExpertParallelSize { get; }

    /// <summary>Tensor-parallel size inside experts; equals <see cref="TensorParallelSize"/> unless set.</summary>
    public int ExpertTensorParallelSize { get; }

    /// <summary>world / (tp · cp · pp).</summary>
    public int DataParallelSize { get; }

    /// <summary>world / (etp · ep · pp).</summary>
    public int ExpertDataParallelSize { get; }

    /// <summary>The grid of a run with one rank.</summary>
    public static ParallelDims SingleRank { get; } = new(1, 1, 1, 1, 1, null);

    /// <param name="worldSize">Number of ranks.</param>
    /// <param name="expertTensorParallelSize">null: follows <paramref name="tensorParallelSize"/>.</param>
    /// <exception cref="ConfigException">The sizes do not fit; it carries every problem that <see cref="Check"/> finds.</exception>
    public ParallelDims(
        int worldSize, int tensorParallelSize, int pipelineParallelSize, int contextParallelSize, int expertParallelSize, int? expertTensorParallelSize)
    {
        var errors = Check(
            worldSize, tensorParallelSize, pipelineParallelSize, contextParallelSize, expertParallelSize, expertTensorParallelSize);
        if (errors.Count > 0) throw new ConfigException(errors);
        (WorldSize, TensorParallelSize, PipelineParallelSize) = (worldSize, tensorParallelSize, pipelineParallelSize);
        (ContextParallelSize, ExpertParallelSize) = (contextParallelSize, expertParallelSize);
        ExpertTensorParallelSize = expertTensorParallelSize ?? tensorParallelSize;
        DataParallelSize = worldSize / (tensorParallelSize * contextParallelSize * pipelineParallelSize);
        ExpertDataParallelSize = worldSize / (ExpertTensorParallelSize * expertParallelSize * pipelineParallelSize);
    }

    /// <summary>Every reason why the sizes do not fit, each with the values that would; empty when they do. Pure.</summary>
    public static IReadOnlyList<ConfigError> Check(
        int worldSize, int tensorParallelSize, int pipelineParallelSize, int contextParallelSize, int expertParallelSize, int? expertTensorParallelSize)
    {
        var errors = new List<ConfigError>();
        RequirePositive(errors, "the number of ranks (NPROC_PER_NODE x NNODES)", worldSize);
        RequirePositive(errors, "tensor_model_parallel_size", tensorParallelSize);
        RequirePositive(errors, "pipeline_model_parallel_size", pipelineParallelSize);
        RequirePositive(errors, "context_parallel_size", contextParallelSize);
        RequirePositive(errors, "expert_model_parallel_size", expertParallelSize);
        if (expertTensorParallelSize is { } given) RequirePositive(errors, "expert_tensor_parallel_size", given);
        if (errors.Count > 0) return errors;

        RequireDivides(errors, worldSize, "data_parallel_size",
        [
            ("tensor_model_parallel_size", tensorParallelSize), ("context_parallel_size", contextParallelSize),
            ("pipeline_model_parallel_size", pipelineParallelSize),
        ]);
        // With one expert rank per tensor rank the expert grid is the dense one with cp folded into edp: nothing new to check.
        if (expertParallelSize > 1 || expertTensorParallelSize is not null)
            RequireDivides(errors, worldSize, "expert data parallel size",
            [
                ("expert_tensor_parallel_size", expertTensorParallelSize ?? tensorParallelSize), ("expert_model_parallel_size", expertParallelSize),
                ("pipeline_model_parallel_size", pipelineParallelSize),
            ]);
        return errors;
    }

    /// <summary>This rank's place on the dense grid.</summary>
    public DenseCoordinates DenseOf(int rank)
    {
        RequireRank(rank);
        var (rest, tp) = Math.DivRem(rank, TensorParallelSize);
        (rest, var cp) = Math.DivRem(rest, ContextParallelSize);
        var (pp, dp) = Math.DivRem(rest, DataParallelSize);
        return new DenseCoordinates(tp, cp, dp, pp);
    }

    /// <summary>This rank's place on the expert grid.</summary>
    public ExpertCoordinates ExpertOf(int rank)
    {
        RequireRank(rank);
        var (rest, etp) = Math.DivRem(rank, ExpertTensorParallelSize);
        (rest, var ep) = Math.DivRem(rest, ExpertParallelSize);
        var (pp, edp) = Math.DivRem(rest, ExpertDataParallelSize);
        return new ExpertCoordinates(etp, ep, edp, pp);
    }

    /// <summary>Global ranks of the group of this kind that holds <paramref name="rank"/>, ascending.</summary>
    public IReadOnlyList<int> MembersOf(GroupKind kind, int rank)
    {
        var dense = DenseOf(rank);
        var expert = ExpertOf(rank);
        return kind switch
        {
            GroupKind.World => [.. Enumerable.Range(0, WorldSize)],
            GroupKind.TensorParallel => Dense(other => other with { Tp = dense.Tp } == dense),
            GroupKind.PipelineParallel => Dense(other => other with { Pp = dense.Pp } == dense),
            GroupKind.ContextParallel => Dense(other => other with { Cp = dense.Cp } == dense),
            GroupKind.DataParallel => Dense(other => other with { Dp = dense.Dp } == dense),
            GroupKind.DataContextParallel => Dense(other => other with { Dp = dense.Dp, Cp = dense.Cp } == dense),
            GroupKind.ModelParallel => Dense(other => other with { Tp = dense.Tp, Pp = dense.Pp } == dense),
            GroupKind.Embedding => EmbeddingMembers(rank, dense),
            GroupKind.ExpertParallel => Expert(other => other with { Ep = expert.Ep } == expert),
            GroupKind.ExpertTensorParallel => Expert(other => other with { Etp = expert.Etp } == expert),
            GroupKind.ExpertDataParallel => Expert(other => other with { Edp = expert.Edp } == expert),
            _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "unknown group"),
        };
    }

    /// <summary>All groups of one kind, ordered by their first rank: every rank is in exactly one of them.</summary>
    public IReadOnlyList<IReadOnlyList<int>> AllGroups(GroupKind kind)
    {
        var groups = new List<IReadOnlyList<int>>();
        for (var rank = 0; rank < WorldSize; rank++)
        {
            var members = MembersOf(kind, rank);
            if (members[0] == rank) groups.Add(members);
        }
        return groups;
    }

    private IReadOnlyList<int> EmbeddingMembers(int rank, DenseCoordinates dense)
    {
        var last = PipelineParallelSize - 1;
        if (dense.Pp != 0 && dense.Pp != last) return [rank];
        return Dense(other => (other.Pp == 0 || other.Pp == last) && other with { Pp = dense.Pp } == dense);
    }

    private int[] Dense(Func<DenseCoordinates, bool> isMember) => [.. Enumerable.Range(0, WorldSize).Where(rank => isMember(DenseOf(rank)))];

    private int[] Expert(Func<ExpertCoordinates, bool> isMember) => [.. Enumerable.Range(0, WorldSize).Where(rank => isMember(ExpertOf(rank)))];

    private void RequireRank(int rank)
    {
        if (rank < 0 || rank >= WorldSize) throw new ArgumentOutOfRangeException(nameof(rank), rank, $"There are {WorldSize} ranks.");
    }

    private static void RequirePositive(List<ConfigError> errors, string name, int value)
    {
        if (value < 1) errors.Add(new ConfigError(Code, $"{name} = {value} is not positive; choose 1 or more."));
    }

    private static void RequireDivides(List<ConfigError> errors, int worldSize, string quotient, (string Name, int Value)[] factors)
    {
        var product = factors.Aggregate(1L, (total, factor) => total * factor.Value);
        if (worldSize % product == 0) return;
        var remedies = factors.Select(factor => DescribeAllowed(worldSize, factor.Name, product / factor.Value)).Where(remedy => remedy.Length > 0).ToArray();
        errors.Add(new ConfigError(Code,
            $"{string.Join(" x ", factors.Select(factor => $"{factor.Name} {factor.Value}"))} = {product} does not divide the {worldSize} ranks, " +
            $"so {quotient} would not be whole; {(remedies.Length == 0 ? "" : $"choose {string.Join(", or ", remedies)}, or ")}start a multiple of {product} ranks."));
    }

    private static string DescribeAllowed(int worldSize, string name, long others)
    {
        if (worldSize % others != 0) return "";
        var allowed = Enumerable.Range(1, worldSize).Where(value => worldSize / others % value == 0).Select(value => $"{value}").ToArray();
        return $"{name} from {string.Join(", ", allowed)}";
    }
}

/// <summary>A rank's place on the dense grid.</summary>
public readonly record struct DenseCoordinates(int Tp, int Cp, int Dp, int Pp);

/// <summary>A rank's place on the expert grid.</summary>
public readonly record struct ExpertCoordinates(int Etp, int Ep, int Edp, int Pp);
