using System.Text.Json;
using Megatron.Compute.Native;

namespace Megatron.Compute.Training;

/// <summary>Time on the GPU of one kind of work in a step.</summary>
/// <param name="Group">matrix products, attention, …</param>
/// <param name="Launches">Kernels, copies and fills.</param>
/// <param name="Milliseconds">Their time on the GPU together.</param>
public sealed record StepProfileRow(string Group, int Launches, double Milliseconds);

/// <summary>What one training step did on the GPU: work by kind, launches, and how long the GPU waited for the host.</summary>
public sealed class StepProfile
{
    private const string OptimizerGroup = "optimizer and norm of gradients";

    /// <summary>First match decides; the rest is "other".</summary>
    private static readonly (string Group, string[] Marks)[] groups =
    [
        ("attention", ["flash", "fmha", "cudnn_generated", "sdpa", "softmax"]),
        ("matrix products", ["gemm", "nvjet", "cutlass", "splitK", "cublas"]),
        ("norms and rotary", ["rms_norm", "rotary", "qk_norm"]),
        ("rounding to float8", ["largest_magnitude", "round_to_e"]),
        ("SwiGLU", ["swiglu"]),
        ("cross-entropy", ["cross_entropy"]),
        (OptimizerGroup, ["adamw", "sgd", "sum_of_squares", "NormTwo", "norm_out"]),
        ("embedding", ["embedding", "index_select", "indexSelect", "radix", "Radix"]),
        ("collectives", ["nccl"]),
        ("experts: permutation and routing", ["copy_rows", "sum_rows", "count_experts", "first_rows", "place_rows", "vectorized_gather", "topk", "TopK", "gatherTopK", "histogram", "scatter_gather"]),
        ("additions to gradients and casts", ["accumulate", "LoadWithCast"]),
        ("copies and fills", ["memcpy", "memset", "copy", "Copy", "Fill"]),
        ("sums and other element-wise work", ["elementwise", "reduce"]),
    ];

    /// <summary>In order of start.</summary>
    public IReadOnlyList<CudaActivity> Activities { get; }

    /// <summary>Kernels, copies and fills of the step.</summary>
    public int Launches => Activities.Count;

    /// <summary>Milliseconds of all its work, one piece after another: what the step would take if nothing waited.</summary>
    public double KernelMs => Activities.Sum(activity => activity.DurationNs) / 1e6;

    /// <summary>First start to last end, milliseconds.</summary>
    public double SpanMs { get; }

    /// <summary>Milliseconds of the span in which no work ran.</summary>
    public double IdleMs { get; }

    /// <param name="activities">Of one step, in order of start.</param>
    public StepProfile(IReadOnlyList<CudaActivity> activities)
    {
        Activities = activities;
        if (activities.Count == 0) return;
        long busyUntil = activities[0].StartNs, idle = 0;
        foreach (var activity in activities)
        {
            if (activity.StartNs > busyUntil) idle += activity.StartNs - busyUntil;
            busyUntil = Math.Max(busyUntil, activity.EndNs);
        }
        (SpanMs, IdleMs) = ((busyUntil - activities[0].StartNs) / 1e6, idle / 1e6);
    }

    /// <summary>Launches of forward and backward of one layer: those of a kernel that come <paramref name="numLayers"/> times are one of each layer.</summary>
    public int LaunchesPerLayer(int numLayers) => ByKernel().Sum(row => row.Launches / numLayers);

    /// <summary>Launches that are not of the optimizer.</summary>
    public int ForwardBackwardLaunches => Activities.Count(activity => GroupOf(activity.Name) != OptimizerGroup);

    /// <summary>Work by kind, longest first.</summary>
    public IReadOnlyList<StepProfileRow> ByGroup() => Rows(activity => GroupOf(activity.Name));

    /// <summary>Work by kernel name, longest first.</summary>
    public IReadOnlyList<StepProfileRow> ByKernel() => Rows(activity => activity.Name);

    /// <summary>The step in the trace format of Chrome and Perfetto ("Trace Event Format": complete events, microseconds).</summary>
    public void WriteChromeTrace(string path)
    {
        using var stream = File.Create(path);
        using var writer = new Utf8JsonWriter(stream);
        var origin = Activities.Count == 0 ? 0 : Activities[0].StartNs;
        writer.WriteStartObject();
        writer.WriteStartArray("traceEvents");
        foreach (var activity in Activities)
        {
            writer.WriteStartObject();
            writer.WriteString("name", activity.Name);
            writer.WriteString("cat", GroupOf(activity.Name));
            writer.WriteString("ph", "X");
            writer.WriteNumber("ts", (activity.StartNs - origin) / 1e3);
            writer.WriteNumber("dur", activity.DurationNs / 1e3);
            writer.WriteNumber("pid", 0);
            writer.WriteNumber("tid", activity.Stream);
            writer.WriteEndObject();
        }
        writer.WriteEndArray();
        writer.WriteEndObject();
    }

    private StepProfileRow[] Rows(Func<CudaActivity, string> key) =>
    [
        .. Activities.GroupBy(key, StringComparer.Ordinal)
            .Select(group => new StepProfileRow(group.Key, group.Count(), group.Sum(activity => activity.DurationNs) / 1e6))
            .OrderByDescending(row => row.Milliseconds),
    ];

    private static string GroupOf(string name)
    {
        foreach (var (group, marks) in groups)
            if (marks.Any(mark => name.Contains(mark, StringComparison.Ordinal))) return group;
        return "other";
    }
}
