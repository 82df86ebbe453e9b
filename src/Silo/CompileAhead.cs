using System.Reflection;
using System.Runtime.CompilerServices;
using Megatron.Compute.Training;
using Megatron.Grains;

namespace Megatron.Silo;

/// <summary>
/// Compiles the code of grains and ranks in a silo that has just started, before it is called. Otherwise a grain that moves here from a lost silo, and the
/// first step of a rank that is started here, would wait for the compiler: a quarter of a second and one second. Three seconds of a core.
/// </summary>
internal static class CompileAhead
{
    private const BindingFlags Declared = BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.Instance | BindingFlags.Static | BindingFlags.DeclaredOnly;

    // What every rank runs through until its first step; what it needs later, or never, is compiled when it is called.
    private static readonly string[] namespaces =
    [
        "Training", "Data", "Data.Rows", "Data.Prepared", "Tokenization", "Distributed", "Models", "Transformer", "TensorParallel", "PipelineParallel", "Ops", "Optimizers",
        "Checkpointing",
    ];

    private static int hasStarted;

    /// <summary>Begins, once in a process; nothing waits for it.</summary>
    public static void Start()
    {
        if (Interlocked.Exchange(ref hasStarted, 1) == 0)
            new Thread(Compile) { IsBackground = true, Name = "compiler" }.Start();
    }

    // Grains first: a silo is asked for them at once.
    private static void Compile()
    {
        var compute = typeof(RankWorker).Assembly.GetTypes();
        var ofRanks = namespaces.SelectMany(name => compute.Where(type => type.Namespace == "Megatron.Compute." + name));
        foreach (var type in typeof(GrainServices).Assembly.GetTypes().Concat(ofRanks).Where(type => !type.ContainsGenericParameters))
            Compile(type);
    }

    private static void Compile(Type type)
    {
        try
        {
            foreach (var method in type.GetMethods(Declared).Cast<MethodBase>().Concat(type.GetConstructors(Declared)))
            {
                if (!method.ContainsGenericParameters && method.GetMethodBody() is not null)
                    RuntimeHelpers.PrepareMethod(method.MethodHandle);
            }
        }
        catch (Exception)
        {
            // Whoever calls it will be told.
        }
    }
}
