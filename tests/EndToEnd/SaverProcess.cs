using System.Runtime.CompilerServices;
using Megatron.Testing;

namespace Megatron.EndToEnd.Tests;

/// <summary>This test program, started again with <see cref="Variable"/> set, only saves checkpoints: see <see cref="SaverLoop"/>.</summary>
internal static class SaverProcess
{
    /// <summary>Environment variable: root folder of the store.</summary>
    public const string Variable = "MEGATRON_TEST_SAVER_PROCESS";

    [ModuleInitializer]
    internal static void RunAndExitIfAsked()
    {
        if (Environment.GetEnvironmentVariable(Variable) is not { Length: > 0 } root) return;
        SaverLoop.Run(root); // of another assembly: its threads must not wait for this initializer
        Environment.Exit(0);
    }
}
