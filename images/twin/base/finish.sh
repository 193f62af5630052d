#!/bin/bash
# finish.sh ROOT: does in an unpacked Debian root what the maintainer scripts would have done, and prunes it.
set -euo pipefail
shopt -s nullglob
root=$1

# dpkg-deb unpacks into /bin and /lib as the packages say; Debian 12 has them all in /usr
for part in bin sbin lib lib64; do
  mkdir -p "$root/$part" "$root/usr/$part"
  cp -al "$root/$part/." "$root/usr/$part/"
  rm -rf "${root:?}/$part"
  ln -s "usr/$part" "$root/$part"
done

cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
sed -i 's/^root:\*:/root:x:/' "$root/etc/passwd"
: > "$root/etc/shadow"
chmod 640 "$root/etc/shadow"

[ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
ln -sf python3.11 "$root/usr/bin/python3"
[ -e "$root/etc/os-release" ] || ln -s ../usr/lib/os-release "$root/etc/os-release"

rmdir "$root/var/run" "$root/var/lock"
ln -s /run "$root/var/run"
ln -s /run/lock "$root/var/lock"

mkdir -p "$root/etc/ssl/certs"
printf '%s\n' "$root"/usr/share/ca-certificates/mozilla/*.crt | LC_ALL=C sort | xargs cat > "$root/etc/ssl/certs/ca-certificates.crt"

ldconfig -r "$root"
rm -rf "$root"/var/cache/ldconfig "$root"/var/log/* "$root"/var/lib/apt "$root"/etc/apt

cd "$root/usr/share"
rm -rf man info lintian locale i18n bash-completion zoneinfo pixmaps menu
find doc -mindepth 2 ! -name copyright ! -type d -delete
find doc -type d -empty -delete
cd "$root/usr/lib"
rm -rf udev systemd ./*-linux-gnu*/gconv ./*-linux-gnu*/audit ./*-linux-gnu*/perl-base
rm -rf python3.11/{lib2to3,ensurepip,idlelib,turtledemo,tkinter,test,pydoc_data} python3.11/config-3.11-*
find . -name '*.pyc' -delete
find . -depth -type d -name __pycache__ -empty -delete

# nothing here needs to become root, and ownership is flattened to root
find "$root" -xdev -type f -perm /6000 -exec chmod u-s,g-s {} +
