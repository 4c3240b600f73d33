// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/kvmem: commands in, commands out.  The ABI is told in
 * include/uapi/kvmem_kmod.h, the rules inside in kvmem.h.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "kvmem.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* What the first version of each struct had; grows never. */
#define KVMEM_INFO_SIZE_0     56
#define KVMEM_REGISTER_SIZE_0 24
#define KVMEM_SCAN_SIZE_0     80
#define KVMEM_MIGRATE_SIZE_0  136
#define KVMEM_EVENTFD_SIZE_0  8

/* Every struct begins with its size, as the caller knows it. */
static long kvmem_arg_in(void *arg, size_t size, size_t size_min,
			 const void __user *uarg, u32 *usize)
{
	if (get_user(*usize, (const u32 __user *)uarg))
		return -EFAULT;
	if (*usize < size_min)
		return -EINVAL;
	if (*usize > PAGE_SIZE)
		return -E2BIG;
	return copy_struct_from_user(arg, size, uarg, *usize);
}

static long kvmem_arg_out(void __user *uarg, u32 usize, const void *arg,
			  size_t size)
{
	return copy_to_user(uarg, arg, min_t(size_t, usize, size)) ? -EFAULT : 0;
}

static long kvmem_ioctl_info(struct kvmem_context *ctx, void __user *uarg)
{
	struct kvmem_info arg;
	u32 usize;
	long rc;

	BUILD_BUG_ON(sizeof(arg) < KVMEM_INFO_SIZE_0);
	rc = kvmem_arg_in(&arg, sizeof(arg), KVMEM_INFO_SIZE_0, uarg, &usize);
	if (rc)
		return rc;
	memset(&arg, 0, sizeof(arg));
	arg.size = usize;
	arg.abi = KVMEM_ABI_VERSION;
	arg.features = KVMEM_FEATURE_SCAN | KVMEM_FEATURE_SCAN_FLUSH |
		       KVMEM_FEATURE_SCAN_THP | KVMEM_FEATURE_SCAN_HUGE |
		       KVMEM_FEATURE_MIGRATE;
	kvmem_context_info(ctx, &arg);
	return kvmem_arg_out(uarg, usize, &arg, sizeof(arg));
}

static long kvmem_ioctl_register(struct kvmem_context *ctx, void __user *uarg)
{
	struct kvmem_register arg;
	u32 usize;
	long rc;

	BUILD_BUG_ON(sizeof(arg) < KVMEM_REGISTER_SIZE_0);
	rc = kvmem_arg_in(&arg, sizeof(arg), KVMEM_REGISTER_SIZE_0, uarg, &usize);
	if (rc)
		return rc;
	if (mutex_lock_killable(&ctx->lock))
		return -EINTR;
	rc = kvmem_context_register(ctx, &arg);
	mutex_unlock(&ctx->lock);
	return rc;
}

static long kvmem_ioctl_unregister(struct kvmem_context *ctx, unsigned long arg)
{
	long rc;

	if (arg)
		return -EINVAL;
	if (mutex_lock_killable(&ctx->lock))
		return -EINTR;
	rc = kvmem_context_unregister(ctx);
	mutex_unlock(&ctx->lock);
	return rc;
}

static long kvmem_ioctl_scan(struct kvmem_context *ctx, void __user *uarg)
{
	struct kvmem_scan arg;
	u32 usize;
	long rc;

	BUILD_BUG_ON(sizeof(arg) < KVMEM_SCAN_SIZE_0);
	rc = kvmem_arg_in(&arg, sizeof(arg), KVMEM_SCAN_SIZE_0, uarg, &usize);
	if (rc)
		return rc;
	if (mutex_lock_killable(&ctx->lock))
		return -EINTR;
	rc = kvmem_context_get_mm(ctx);
	if (!rc) {
		rc = kvmem_scan(ctx, &arg);
		if (!rc)
			trace_kvmem_scan(ctx, &arg);
		kvmem_context_put_mm(ctx);
	}
	mutex_unlock(&ctx->lock);
	return rc ?: kvmem_arg_out(uarg, usize, &arg, sizeof(arg));
}

static long kvmem_ioctl_migrate(struct kvmem_context *ctx, void __user *uarg)
{
	struct kvmem_migrate arg;
	u32 usize;
	long rc;

	BUILD_BUG_ON(sizeof(arg) < KVMEM_MIGRATE_SIZE_0);
	rc = kvmem_arg_in(&arg, sizeof(arg), KVMEM_MIGRATE_SIZE_0, uarg, &usize);
	if (rc)
		return rc;
	if (mutex_lock_killable(&ctx->lock))
		return -EINTR;
	rc = kvmem_context_get_mm(ctx);
	if (!rc) {
		rc = kvmem_migrate(ctx, &arg);
		if (!rc)
			trace_kvmem_migrate(ctx, &arg);
		kvmem_context_put_mm(ctx);
	}
	mutex_unlock(&ctx->lock);
	return rc ?: kvmem_arg_out(uarg, usize, &arg, sizeof(arg));
}

static long kvmem_ioctl_eventfd(struct kvmem_context *ctx, void __user *uarg)
{
	struct kvmem_eventfd arg;
	u32 usize;
	long rc;

	BUILD_BUG_ON(sizeof(arg) < KVMEM_EVENTFD_SIZE_0);
	rc = kvmem_arg_in(&arg, sizeof(arg), KVMEM_EVENTFD_SIZE_0, uarg, &usize);
	return rc ?: kvmem_context_set_eventfd(ctx, &arg);
}

static long kvmem_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct kvmem_context *ctx = file->private_data;
	void __user *uarg = (void __user *)arg;

	switch (cmd) {
	case KVMEM_IOC_GET_INFO:
		return kvmem_ioctl_info(ctx, uarg);
	case KVMEM_IOC_REGISTER:
		return kvmem_ioctl_register(ctx, uarg);
	case KVMEM_IOC_UNREGISTER:
		return kvmem_ioctl_unregister(ctx, arg);
	case KVMEM_IOC_SCAN:
		return kvmem_ioctl_scan(ctx, uarg);
	case KVMEM_IOC_MIGRATE:
		return kvmem_ioctl_migrate(ctx, uarg);
	case KVMEM_IOC_SET_EVENTFD:
		return kvmem_ioctl_eventfd(ctx, uarg);
	}
	return -ENOTTY;
}

/*
 * The core clears VM_MAYWRITE of a shared mapping whose file is not open for
 * writing, and open() let no other file through.  A private mapping could be
 * made writable by mprotect(); it would show its own copy, frozen, and so it is
 * refused.
 */
static int kvmem_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_flags & (VM_WRITE | VM_MAYWRITE))
		return -EACCES;
	return kvmem_context_map(file->private_data, vma);
}

static int kvmem_open(struct inode *inode, struct file *file)
{
	struct kvmem_context *ctx;

	if (file->f_mode & FMODE_WRITE)
		return -EACCES;
	ctx = kvmem_context_create();
	if (!ctx)
		return -ENOMEM;
	file->private_data = ctx;
	return nonseekable_open(inode, file);
}

static int kvmem_release(struct inode *inode, struct file *file)
{
	kvmem_context_destroy(file->private_data);
	return 0;
}

static const struct file_operations kvmem_fops = {
	.owner = THIS_MODULE,
	.open = kvmem_open,
	.release = kvmem_release,
	.unlocked_ioctl = kvmem_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = kvmem_mmap,
};

/* Readable by all: a descriptor acts on what its holder was given, no more. */
static struct miscdevice kvmem_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kvmem",
	.fops = &kvmem_fops,
	.mode = 0444,
};
module_misc_device(kvmem_device);

MODULE_DESCRIPTION("kvmem: page access heat and page migration for memory tiering");
MODULE_LICENSE("GPL");
MODULE_VERSION("1");
